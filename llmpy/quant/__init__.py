"""Element types of stored weights (F32 ... Q6_K), and matrices stored in them."""
