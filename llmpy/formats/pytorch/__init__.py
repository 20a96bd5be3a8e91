"""PyTorch's checkpoints, read without PyTorch: the archive, a pickle reader that runs no code, Meta's Llama."""
