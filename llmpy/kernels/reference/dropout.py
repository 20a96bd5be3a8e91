"""Dropout (Srivastava et al. 2014): each element is zero with probability p, else divided by 1 - p.

A hash of the element's index and a key decides which elements are dropped, so no mask is saved: the backward pass is
the same call with the same key. The hash takes a counter instead of the state of a generator (Salmon et al. 2011); it
mixes 32 bits with lowbias32 (Wellons 2018).
"""

import numpy as np


def dropout(y, x, probability, key, residual=None):
    """x, any shape -> y = x * mask / (1 - probability), plus `residual` if given; y may be x or residual.

    `key` is an int of 64 bits, different for every place where a model drops, and for every step.
    """
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32 & 0xFFFFFFFF)
    index = np.arange(x.size, dtype=np.uint64).astype(np.uint32).reshape(x.shape)
    kept = _mix(_mix(index ^ low) ^ high) >= np.uint32(probability * 2**32)
    dropped = np.where(kept, x * (1 / (1 - probability)), 0)
    y[...] = dropped if residual is None else dropped + residual


def _mix(h):
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x7FEB352D)
    h = (h ^ h >> np.uint32(15)) * np.uint32(0x846CA68B)
    return h ^ h >> np.uint32(16)
