"""Rotary positions (Su et al. 2021): channel pair i of a head is rotated by the angle position * frequency[i].

The dot product of a query and a key then depends only on the distance between their positions. A pair is two neighbours
(2i, 2i + 1) if `interleaved` (the paper, Meta, llama2.c), else (i, i + hs/2) (Hugging Face).
"""

import numpy as np


def rope_forward(x, cos, sin, interleaved=True, positions=None):
    """Rotates x [B, T, heads, hs] in place; cos, sin [maxT, hs/2] of the angles of every position.

    positions int32 [B] are the positions of x[:, 0]; None: 0.
    """
    B, T, _, hs = x.shape
    starts = np.zeros(B, np.int32) if positions is None else positions
    at = starts[:, None] + np.arange(T)
    c, s = cos[at][:, :, None], sin[at][:, :, None]  # [B, T, 1, hs/2]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : hs // 2], x[..., hs // 2 :])
    first[...], second[...] = first * c - second * s, first * s + second * c


def rope_backward(dx, cos, sin, interleaved=True, positions=None):
    """Rotates dy to dx in place by the negative angles: the transpose of a rotation is its inverse."""
    rope_forward(dx, cos, -sin, interleaved, positions)
