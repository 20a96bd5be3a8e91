"""What the GPU's kernels are worth on the card of this machine: right, how near its ceilings, and beside PyTorch."""
