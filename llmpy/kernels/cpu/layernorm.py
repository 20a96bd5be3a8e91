"""Layer normalisation (Ba, Kiros, Hinton 2016): y = (x - mean) * rstd * w + b, over the last axis. Bound by memory:
each row is read once."""

from __future__ import annotations

import numpy as np
from numba import prange

from llmpy.kernels.cpu.jit.compile import acts2, i64, kernel, matrix, vector
from llmpy.kernels.cpu.jit.intrinsics import narrow_like, widen
from llmpy.kernels.cpu.jit.scratch import scratch

EPS = np.float32(1e-5)
ROWS = 64  # to a block of the backward pass; fixed, so that the order of its sums does not depend on the threads


@kernel(acts2, vector, vector, acts2, vector, vector)
def layernorm_forward(y, mean, rstd, x, w, b):
    """x [N, C], w [C], b [C] -> y [N, C]; mean [N] and rstd [N] are kept for the backward pass."""
    N, C = x.shape
    for n in prange(N):
        total = np.float32(0)
        for c in range(C):
            total += widen(x[n, c])
        m = total / np.float32(C)
        squares = np.float32(0)
        for c in range(C):
            squares += (widen(x[n, c]) - m) * (widen(x[n, c]) - m)
        r = np.float32(1) / np.sqrt(squares / np.float32(C) + EPS)
        for c in range(C):
            y[n, c] = narrow_like(y, (widen(x[n, c]) - m) * r * w[c] + b[c])
        mean[n], rstd[n] = m, r


def layernorm_backward(dresidual, dw, db, dy, x, w, mean, rstd):
    """dy [N, C]; dresidual [N, C], dw [C] and db [C] are added to: x is the residual stream, which has a gradient
    already."""
    blocks = -(-len(x) // ROWS)
    partial = scratch("layernorm partial sums", blocks, 2 * x.shape[1])
    _layernorm_backward(dresidual, dw, db, dy, x, w, mean, rstd, partial, blocks)


@kernel(acts2, vector, vector, acts2, acts2, vector, vector, vector, matrix, i64)
def _layernorm_backward(dresidual, dw, db, dy, x, w, mean, rstd, partial, blocks):
    """partial [blocks, 2 C]: each block's share of dw and db, summed at the end from the first block to the last."""
    N, C = x.shape
    for block in prange(blocks):
        dw_block, db_block = partial[block, :C], partial[block, C : 2 * C]
        dw_block[:] = 0
        db_block[:] = 0
        for n in range(block * ROWS, min(N, (block + 1) * ROWS)):
            m, r = mean[n], rstd[n]
            sum_dnorm, sum_dnorm_norm = np.float32(0), np.float32(0)
            for c in range(C):
                norm = (widen(x[n, c]) - m) * r
                gradient = widen(dy[n, c])
                dnorm = gradient * w[c]
                sum_dnorm += dnorm
                sum_dnorm_norm += dnorm * norm
                dw_block[c] += gradient * norm
                db_block[c] += gradient
            mean_dnorm, mean_dnorm_norm = sum_dnorm / np.float32(C), sum_dnorm_norm / np.float32(C)
            for c in range(C):
                norm = (widen(x[n, c]) - m) * r
                change = r * (widen(dy[n, c]) * w[c] - mean_dnorm - norm * mean_dnorm_norm)
                dresidual[n, c] = narrow_like(dresidual, widen(dresidual[n, c]) + change)
    for block in range(blocks):
        for c in range(C):
            dw[c] += partial[block, c]
            db[c] += partial[block, C + c]
