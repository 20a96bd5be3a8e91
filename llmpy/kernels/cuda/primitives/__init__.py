"""Building blocks of several GPU kernels: row blocks, reductions, token sorting."""
