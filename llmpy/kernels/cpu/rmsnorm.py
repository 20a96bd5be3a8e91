"""Root mean square normalisation (Zhang, Sennrich 2019): y = x * rstd * w, over the last axis. Bound by memory: each
row is read once."""

from __future__ import annotations

import numpy as np
from numba import prange

from llmpy.kernels.cpu.jit.compile import acts2, f32, i64, kernel, matrix, vector
from llmpy.kernels.cpu.jit.intrinsics import narrow_like, widen
from llmpy.kernels.cpu.jit.scratch import scratch

ROWS = 64  # to a block of the backward pass; fixed, so that the order of its sums does not depend on the threads


def rmsnorm_forward(y, rstd, x, w, eps=1e-5):
    """x [N, C], w [C] -> y [N, C]; rstd [N] is kept for the backward pass."""
    _rmsnorm_forward(y, rstd, x, w, eps)


def rmsnorm_backward(dresidual, dw, dy, x, w, rstd):
    """dy [N, C]; dresidual [N, C] and dw [C] are added to: x is the residual stream, which has a gradient already."""
    blocks = -(-len(x) // ROWS)
    _rmsnorm_backward(dresidual, dw, dy, x, w, rstd, scratch("rmsnorm partial sums", blocks, x.shape[1]), blocks)


@kernel(acts2, vector, acts2, vector, f32)
def _rmsnorm_forward(y, rstd, x, w, eps):
    N, C = x.shape
    for n in prange(N):
        squares = np.float32(0)
        for c in range(C):
            squares += widen(x[n, c]) * widen(x[n, c])
        r = np.float32(1) / np.sqrt(squares / np.float32(C) + eps)
        for c in range(C):
            y[n, c] = narrow_like(y, widen(x[n, c]) * r * w[c])
        rstd[n] = r


@kernel(acts2, vector, acts2, acts2, vector, vector, matrix, i64)
def _rmsnorm_backward(dresidual, dw, dy, x, w, rstd, partial, blocks):
    """partial [blocks, C]: each block's share of dw, summed at the end from the first block to the last."""
    N, C = x.shape
    for block in prange(blocks):
        dw_block = partial[block, :C]
        dw_block[:] = 0
        for n in range(block * ROWS, min(N, (block + 1) * ROWS)):
            r = rstd[n]
            total = np.float32(0)
            for c in range(C):
                norm, gradient = widen(x[n, c]) * r, widen(dy[n, c])
                total += gradient * w[c] * norm
                dw_block[c] += gradient * norm
            mean = total / np.float32(C)
            for c in range(C):
                change = r * (widen(dy[n, c]) * w[c] - widen(x[n, c]) * r * mean)
                dresidual[n, c] = narrow_like(dresidual, widen(dresidual[n, c]) + change)
    for block in range(blocks):
        for c in range(C):
            dw[c] += partial[block, c]
