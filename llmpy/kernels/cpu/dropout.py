"""Dropout (Srivastava et al. 2014) whose mask is a hash of index and key: nothing is stored, and no generator is shared
by threads."""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

from llmpy.kernels.cpu.jit.compile import acts1, boolean, f32, kernel
from llmpy.kernels.cpu.jit.intrinsics import narrow_like, widen

BLOCK = 4096  # numbers to a task
u32 = types.uint32


def dropout(y, x, probability, key, residual=None):
    """x, any shape -> y = x * mask / (1 - probability), plus `residual` if given; y may be x or residual.

    `key` is an int of 64 bits: another for every place where a model drops, and for every step.
    """
    low, high, threshold = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF, int(probability * 2**32)
    added = x if residual is None else residual
    scale = 1 / (1 - probability)
    _dropout(y.reshape(-1), x.reshape(-1), added.reshape(-1), residual is not None, scale, threshold, low, high)


@njit
def _mix(h):
    """lowbias32 (Wellons 2018). Every step is cut to 32 bits, for Numba widens products of integers to 64."""
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@kernel(acts1, acts1, acts1, boolean, f32, u32, u32, u32)
def _dropout(y, x, residual, add, scale, threshold, low, high):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min(x.size, (block + 1) * BLOCK)
        x_block, residual_block = x[start:end], residual[start:end]
        result = np.empty(BLOCK, np.float32)  # not y itself: where it is x, LLVM would not make vector code
        for i in range(x_block.size):
            kept = _mix(_mix(np.uint32(start + i) ^ low) ^ high) >= threshold
            result[i] = widen(x_block[i]) * scale if kept else np.float32(0)
        if add:
            for i in range(x_block.size):
                result[i] += widen(residual_block[i])
        y_block = y[start:end]
        for i in range(y_block.size):
            y_block[i] = narrow_like(y, result[i])
