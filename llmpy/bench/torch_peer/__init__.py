"""The same models in PyTorch: the peer of the benchmarks."""
