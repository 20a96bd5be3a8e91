"""AdamW (Loshchilov, Hutter 2017) over flat buffers, and the norm that gradient clipping needs. Both run at the speed
of memory."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from llmpy.kernels.cpu.compile import f32, f64, kernel, vector
from llmpy.kernels.cpu.workspace import scratch

BLOCK = 65536  # numbers to a task


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale):
    """p, g, m, v [n]: one step; `step` counts from 1; `grad_scale` multiplies g (clipping). m, v and p are updated."""
    rate = lr / (1 - beta1**step)
    _adamw(p, g, m, v, rate, 1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**step), eps, lr * weight_decay, grad_scale)


@kernel(vector, vector, vector, vector, f32, f32, f32, f32, f32, f32, f32)
def _adamw(p, g, m, v, rate, one_minus_beta1, one_minus_beta2, v_scale, eps, decay, grad_scale):
    """rate = lr / (1 - beta1^step) and v_scale = 1 / sqrt(1 - beta2^step) carry the corrections of the two biases."""
    for block in prange((p.size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min(p.size, (block + 1) * BLOCK)
        # Views counted from 0: an index that might be negative keeps LLVM from vectorising.
        p_, g_, m_, v_ = p[start:end], g[start:end], m[start:end], v[start:end]
        for i in range(p_.size):
            grad = g_[i] * grad_scale
            m_[i] += one_minus_beta1 * (grad - m_[i])
            v_[i] += one_minus_beta2 * (grad * grad - v_[i])
            p_[i] -= rate * m_[i] / (np.sqrt(v_[i]) * v_scale + eps) + decay * p_[i]


def global_norm(g):
    """g [n] -> its L2 norm, a Python float; blocks of fixed size are summed in order, in float64."""
    partial = scratch("norm partial sums", -(-g.size // BLOCK), dtype=np.float64)
    return math.sqrt(_sum_of_squares(g, partial))


@kernel(vector, f64[::1])
def _sum_of_squares(g, partial):
    blocks = (g.size + BLOCK - 1) // BLOCK
    for block in prange(blocks):
        numbers = g[block * BLOCK : min(g.size, (block + 1) * BLOCK)]
        total = 0.0
        for i in range(numbers.size):
            total += np.float64(numbers[i]) * np.float64(numbers[i])
        partial[block] = total
    total = 0.0
    for block in range(blocks):
        total += partial[block]
    return total
