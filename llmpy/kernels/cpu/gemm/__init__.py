"""The CPU's matmul: packing, micro-kernels in LLVM IR, epilogues."""
