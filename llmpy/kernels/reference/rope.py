"""Rotary positions (Su et al. 2021): channel pair i of a head is turned by the angle position * frequency[i].

A product of a query and a key then depends on the distance between their positions alone. The pairs are neighbours
(2i, 2i + 1) where `interleaved` (the paper, Meta, llama2.c), else (i, i + hs/2) (Hugging Face).
"""

import numpy as np


def rope_forward(x, cos, sin, interleaved=True, positions=None):
    """x [B, T, heads, hs], turned in place; cos, sin [maxT, hs/2] of every position's angles.

    positions int32 [B] is where x[:, 0] lies in each sequence; None: at 0.
    """
    B, T, _, hs = x.shape
    starts = np.zeros(B, np.int32) if positions is None else positions
    at = starts[:, None] + np.arange(T)
    c, s = cos[at][:, :, None], sin[at][:, :, None]  # [B, T, 1, hs/2]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : hs // 2], x[..., hs // 2 :])
    first[...], second[...] = first * c - second * s, first * s + second * c


def rope_backward(dx, cos, sin, interleaved=True, positions=None):
    """dy, in the same memory, -> dx: turned back, for a rotation's transpose is its inverse."""
    rope_forward(dx, cos, -sin, interleaved, positions)
