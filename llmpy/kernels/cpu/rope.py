"""Rotary positions (Su et al. 2021), in place on queries and keys where they lie in the buffer of qkv."""

from __future__ import annotations

import numpy as np
from numba import prange

from llmpy.kernels.cpu.jit.compile import acts1, boolean, f32, i32, i64, kernel, matrix
from llmpy.kernels.cpu.jit.intrinsics import narrow_like, widen


def rope_forward(x, cos, sin, interleaved=True, positions=None):
    """x [B, T, heads, hs], turned in place; cos, sin [maxT, hs/2] of every position's angles.

    positions int32 [B] is where x[:, 0] lies in each sequence; None: at 0.
    """
    _turn(x, cos, sin, interleaved, positions, 1.0)


def rope_backward(dx, cos, sin, interleaved=True, positions=None):
    """Overwrites dy by dx: the inverse rotation, because the transpose of a rotation is its inverse."""
    _turn(dx, cos, sin, interleaved, positions, -1.0)


def _turn(x, cos, sin, interleaved, positions, direction):
    starts = np.zeros(len(x), np.int32) if positions is None else positions
    # As one vector from the first number to the last: Numba makes vector code only where it sees that the step is 1.
    strides = [step // x.itemsize for step in x.strides]
    length = 1 + sum((size - 1) * step for size, step in zip(x.shape, strides, strict=True))
    flat = np.lib.stride_tricks.as_strided(x, (length,), (x.itemsize,))
    _rope(flat, *x.shape, *strides[:3], cos, sin, interleaved, starts, direction)


@kernel(acts1, i64, i64, i64, i64, i64, i64, i64, matrix, matrix, boolean, i32[::1], f32)
def _rope(x, B, T, heads, hs, stride_b, stride_t, stride_h, cos, sin, interleaved, starts, direction):
    half = hs // 2
    for row in prange(B * T):
        b, t = row // T, row % T
        c, s = cos[starts[b] + t], sin[starts[b] + t]
        for h in range(heads):
            begin = b * stride_b + t * stride_t + h * stride_h
            if interleaved:
                head = x[begin : begin + hs]
                for i in range(half):
                    first, second, turn = widen(head[2 * i]), widen(head[2 * i + 1]), s[i] * direction
                    head[2 * i] = narrow_like(x, first * c[i] - second * turn)
                    head[2 * i + 1] = narrow_like(x, first * turn + second * c[i])
            else:
                low, high = x[begin : begin + half], x[begin + half : begin + hs]
                for i in range(half):
                    first, second, turn = widen(low[i]), widen(high[i]), s[i] * direction
                    low[i] = narrow_like(x, first * c[i] - second * turn)
                    high[i] = narrow_like(x, first * turn + second * c[i])
