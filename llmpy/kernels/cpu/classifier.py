"""Language-model head and cross-entropy together, some rows at a time: the [N, V] logits never exist at once."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmpy.kernels.cpu.jit.compile import boolean, f32, i32, kernel, matrix, vector
from llmpy.kernels.cpu.jit.vector_math import exp
from llmpy.kernels.cpu.linear import linear_backward, linear_forward


def classifier_forward(losses, x, w, targets, logits):
    """x [N, C], w [V, C], targets int32 [N] (-1: none) -> losses [N]; logits [R, V] is scratch."""
    for rows in _chunks(len(x), len(logits)):
        chunk = logits[: rows.stop - rows.start]
        linear_forward(chunk, x[rows], w)
        cross_entropy(losses[rows], chunk, targets[rows], 0.0, False)


def classifier_backward(losses, dx, dw, x, w, targets, scale, logits, accumulate=True):
    """Computes losses and the gradients of scale * losses.sum(): overwrites dx [N, C], accumulates dw [V, C]."""
    for rows in _chunks(len(x), len(logits)):
        chunk = logits[: rows.stop - rows.start]
        linear_forward(chunk, x[rows], w)
        cross_entropy(losses[rows], chunk, targets[rows], scale, True)
        linear_backward(dx[rows], dw, None, chunk, x[rows], w, accumulate=accumulate or rows.start > 0)


def _chunks(rows, size):
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


@njit(fastmath=True)  # a maximum runs in vector lanes only if NaN may be ignored; a NaN shows in the sum that follows
def _largest(logits, n):
    top = logits[n, 0]
    for i in range(logits.shape[1]):
        top = max(top, logits[n, i])
    return top


@kernel(vector, matrix, i32[::1], f32, boolean)
def cross_entropy(losses, logits, targets, scale, backward):
    """logits [N, V] -> losses [N]; with `backward`, logits becomes its own gradient times `scale`."""
    N, V = logits.shape
    for n in prange(N):
        target = targets[n]
        top = _largest(logits, n)
        total = np.float32(0)
        for i in range(V):
            total += exp(logits[n, i] - top)
        losses[n] = top + np.log(total) - logits[n, target] if target >= 0 else np.float32(0)
        if backward:
            lse, factor = top + np.log(total), scale if target >= 0 else np.float32(0)
            for i in range(V):
                logits[n, i] = exp(logits[n, i] - lse) * factor
            if target >= 0:
                logits[n, target] -= scale
