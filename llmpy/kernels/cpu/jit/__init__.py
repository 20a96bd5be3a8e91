"""Compilation of the CPU kernels: Numba, LLVM IR, instruction sets, threads, scratch memory."""
