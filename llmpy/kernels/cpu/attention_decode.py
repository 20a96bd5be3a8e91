"""Attention of the newest token of each sequence over the keys and values that a decoder has kept."""

from __future__ import annotations

import numpy as np
from numba import prange

from llmpy.kernels.cpu.compile import acts3, acts4, i32, kernel, matrix
from llmpy.kernels.cpu.scalars import narrow_like, widen
from llmpy.kernels.cpu.vector_math import exp
from llmpy.kernels.cpu.workspace import scratch

LOWEST = np.float32(-3e38)


def attention_decode(y, q, k_cache, v_cache, positions, slots=None):
    """q [S, NH, hs] of the newest tokens, caches [slots, T, NKV, hs], positions int32 [S] -> y [S, NH, hs] over keys
    0..position of the caches slots int32 [S]; None: of the first S."""
    S, NH, hs = q.shape
    slots = np.arange(S, dtype=np.int32) if slots is None else slots
    scores, outputs = scratch("attention scores", S * NH, k_cache.shape[1]), scratch("attention outputs", S * NH, hs)
    _attention_decode(y, q, k_cache, v_cache, positions, slots, scores, outputs)


@kernel(acts3, acts3, acts4, acts4, i32[::1], i32[::1], matrix, matrix)
def _attention_decode(y, q, k_cache, v_cache, positions, slots, scores, outputs):
    S, NH, hs = q.shape
    group = NH // k_cache.shape[2]
    scale = np.float32(1 / np.sqrt(hs))
    for task in prange(S * NH):
        s, h = task // NH, task % NH
        keys, slot = positions[s] + 1, slots[s]
        top = LOWEST
        for t in range(keys):
            score = np.float32(0)
            for c in range(hs):
                score += widen(q[s, h, c]) * widen(k_cache[slot, t, h // group, c])
            scores[task, t] = score * scale
            top = max(top, scores[task, t])
        total = np.float32(0)
        for t in range(keys):
            scores[task, t] = exp(scores[task, t] - top)
            total += scores[task, t]
        output = outputs[task]
        output[:] = 0
        for t in range(keys):
            weight = scores[task, t] / total
            for c in range(hs):
                output[c] += weight * widen(v_cache[slot, t, h // group, c])
        for c in range(hs):
            y[s, h, c] = narrow_like(y, output[c])
