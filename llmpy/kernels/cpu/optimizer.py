"""AdamW (Loshchilov, Hutter 2017) over flat buffers, and the norm that gradient clipping needs; and the packing of
weights that are kept in bfloat16 too. All run at the speed of memory."""

from __future__ import annotations

import math

import numpy as np
from numba import get_num_threads, prange

from llmpy.kernels.cpu.gemm.epilogue import store_vector
from llmpy.kernels.cpu.gemm.microkernels import BFLOAT16
from llmpy.kernels.cpu.gemm.packed_weight import PACKED
from llmpy.kernels.cpu.jit.compile import f32, f64, helper, i64, kernel, matrix, vector
from llmpy.kernels.cpu.jit.intrinsics import fetch_add, round_at_random
from llmpy.kernels.cpu.jit.scratch import scratch

BLOCK = 65536  # numbers to a task
ROWS, COLUMNS = BFLOAT16.NR, 16 * BFLOAT16.NR  # of a weight to a task: whole panels, and 100 KB in the second cache
NR = BFLOAT16.NR
pack_b, stream_b = BFLOAT16.pack_b, BFLOAT16.stream_b


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale, weight=None, rounding=0):
    """p, g, m, v [n]: one step; `step` counts from 1; `grad_scale` multiplies g (clipping). m, v and p are updated.

    With a `weight` they are [OC, C], and it becomes the new p as `pack_weight` makes it.
    """
    rate, v_scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    flat = (x.reshape(-1) for x in (p, g, m, v))
    _adamw(*flat, rate, 1 - beta1, 1 - beta2, v_scale, eps, lr * weight_decay, grad_scale)
    if weight is not None:
        pack_weight(weight, p, rounding)


def pack_weight(weight, w, rounding=0):
    """w, float32 [OC, C] -> the weight: the nearest bfloat16 numbers, or where `rounding` is not 0, above or below at
    random with that seed (32 bits), so that the mean is w."""
    OC, C = weight.shape
    rows, columns = weight.addresses
    depths = BFLOAT16.padded(OC), BFLOAT16.padded(C)
    space = scratch("packed weight", get_num_threads(), ROWS * COLUMNS)
    counter = scratch("packed weight count", 8, dtype=np.int64)
    _pack_weight(w, rounding, rows, columns, *depths, space, counter, get_num_threads())


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


@helper
def _round_row(out, w, index, rounding):
    """w -> out, rounded at random; `index` is the first number's place in the matrix."""
    for i in range(out.size):
        out[i] = round_at_random(w[i], index + i, rounding)


@helper
def _pack_block(source, stride, rows, columns, r0, c0, height, width, OC_depth, C_depth):
    """float32 [height, width] at an address, rows `stride` apart -> its places in the panels of the weight; see
    weights.py."""
    if not PACKED:
        for r in range(height):
            store_vector(rows + ((r0 + r) * C_depth + c0) * 2, source + r * stride * 4, width, True)
        return
    row_panel = rows + (r0 // NR * C_depth + c0) * NR * 2
    aligned = rows % 64 == 0 and columns % 64 == 0  # then so is every panel
    if aligned:  # the products that read it come when no cache has it any more
        stream_b(row_panel, source, stride, height, width, True, True)
    else:
        pack_b(row_panel, source, stride, height, width, True, True)
    for c in range(0, width, NR):
        panel = columns + ((c0 + c) // NR * OC_depth + r0) * NR * 2
        if aligned:
            stream_b(panel, source + c * 4, stride, min(NR, width - c), height, False, True)
        else:
            pack_b(panel, source + c * 4, stride, min(NR, width - c), height, False, True)


@kernel(matrix, *(i64,) * 5, matrix, i64[::1], i64, precisions=("bfloat16",))
def _pack_weight(w, rounding, rows, columns, OC_depth, C_depth, space, counter, threads):
    """Tasks are blocks of ROWS x COLUMNS: rounded, and packed both ways while they are in the cache."""
    OC, C = w.shape
    across = (C + COLUMNS - 1) // COLUMNS
    counter[0] = 0
    for thread in prange(threads):
        block = space[thread]
        while True:
            task = fetch_add(counter.ctypes.data)
            if task >= (OC + ROWS - 1) // ROWS * across:
                break
            r0, c0 = task // across * ROWS, task % across * COLUMNS
            height, width = min(ROWS, OC - r0), min(COLUMNS, C - c0)
            source, stride = w[r0, c0:].ctypes.data, C
            if rounding != 0:
                source, stride = block.ctypes.data, width
                for r in range(height):
                    out = block[r * width : (r + 1) * width]
                    _round_row(out, w[r0 + r, c0 : c0 + width], (r0 + r) * C + c0, rounding)
            _pack_block(source, stride, rows, columns, r0, c0, height, width, OC_depth, C_depth)


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
