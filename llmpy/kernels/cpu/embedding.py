"""Token and position embedding: x[b, t] = wte[tokens[b, t]] + wpe[start + t]; without wpe, of tokens alone."""

from __future__ import annotations

import numpy as np
from numba import prange

from llmpy.kernels.cpu.jit.compile import acts3, i32, i64, kernel, matrix
from llmpy.kernels.cpu.jit.intrinsics import narrow_like, widen

COLUMNS = 64  # to a task of the backward pass, which owns them in all rows: no two threads add to one number
_NONE = np.zeros((0, 0), np.float32)


def embedding_forward(x, tokens, wte, wpe=None, start=0):
    """tokens int32 [B, T], wte [V, C], wpe [maxT, C] -> x [B, T, C]; `start` is the position of the first token."""
    _embedding_forward(x, tokens, wte, _NONE if wpe is None else wpe, start)


def embedding_backward(dwte, dwpe, dx, tokens):
    """dx [B, T, C], tokens [B, T]; dwte [V, C] and dwpe [maxT, C], or None, are added to, in the order of the rows."""
    _embedding_backward(dwte, _NONE if dwpe is None else dwpe, dx, tokens)


@kernel(acts3, i32[:, :], matrix, matrix, i64)  # tokens may be a part of a longer array
def _embedding_forward(x, tokens, wte, wpe, start):
    B, T, C = x.shape
    for row in prange(B * T):
        b, t = row // T, row % T
        token = tokens[b, t]
        for c in range(C):
            position = wpe[start + t, c] if len(wpe) else np.float32(0)
            x[b, t, c] = narrow_like(x, wte[token, c] + position)


@kernel(matrix, matrix, acts3, i32[:, :])
def _embedding_backward(dwte, dwpe, dx, tokens):
    B, T, C = dx.shape
    for block in prange((C + COLUMNS - 1) // COLUMNS):
        start, end = block * COLUMNS, min(C, (block + 1) * COLUMNS)
        for b in range(B):
            for t in range(T):
                gradient = dx[b, t, start:end]
                by_token = dwte[tokens[b, t], start:end]
                for c in range(gradient.size):
                    by_token[c] += widen(gradient[c])
                if len(dwpe):
                    by_position = dwpe[t, start:end]
                    for c in range(gradient.size):
                        by_position[c] += widen(gradient[c])
