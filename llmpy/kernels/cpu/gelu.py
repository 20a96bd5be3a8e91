"""GELU in the tanh form of GPT-2 (Hendrycks, Gimpel 2016), where it is not fused into a product."""

from __future__ import annotations

from numba import prange

from llmpy.kernels.cpu.jit import vector_math
from llmpy.kernels.cpu.jit.compile import acts1, kernel
from llmpy.kernels.cpu.jit.intrinsics import narrow_like, widen

BLOCK = 16384  # numbers to a task


def gelu_forward(y, x):
    """x -> y, any shape; y may be x."""
    _gelu_forward(y.reshape(-1), x.reshape(-1))


def gelu_backward(dx, dy, x):
    """dy -> dx = dy * GELU'(x), any shape; dx may be dy."""
    _gelu_backward(dx.reshape(-1), dy.reshape(-1), x.reshape(-1))


@kernel(acts1, acts1)
def _gelu_forward(y, x):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min(x.size, (block + 1) * BLOCK)
        y_block, x_block = y[start:end], x[start:end]
        for i in range(x_block.size):
            y_block[i] = narrow_like(y, vector_math.gelu(widen(x_block[i])))


@kernel(acts1, acts1, acts1)
def _gelu_backward(dx, dy, x):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min(x.size, (block + 1) * BLOCK)
        dx_block, dy_block, x_block = dx[start:end], dy[start:end], x[start:end]
        for i in range(x_block.size):
            dx_block[i] = narrow_like(dx, widen(dy_block[i]) * vector_math.gelu_derivative(widen(x_block[i])))
