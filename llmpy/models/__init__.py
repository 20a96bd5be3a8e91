"""The models: each a table of parameters, a forward and a backward pass, written over the kernel contract."""
