"""Measures the GPU backend on this machine's card: correctness, share of the card's ceilings, ratio to PyTorch."""
