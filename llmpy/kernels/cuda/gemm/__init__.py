"""The GPU's matmul: cuBLASLt, the Triton GEMM, and the autotuner that picks between them."""
