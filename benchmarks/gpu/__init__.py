"""Benchmarks of the GPU kernels on this machine: correctness, share of the GPU's peak, and comparison with PyTorch."""
