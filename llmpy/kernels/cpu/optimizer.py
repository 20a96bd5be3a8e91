"""AdamW (Loshchilov, Hutter 2017) over flat buffers, and the norm that gradient clipping needs. Both run at the speed
of memory; weights that are kept in bfloat16 too are packed on the way, while the new values are in the cache."""

from __future__ import annotations

import math

import numpy as np
from numba import get_num_threads, prange

from llmpy.kernels.cpu.compile import boolean, f32, f64, helper, i64, kernel, matrix, vector
from llmpy.kernels.cpu.epilogue import store_vector
from llmpy.kernels.cpu.products import BFLOAT16
from llmpy.kernels.cpu.scalars import fetch_add, round_at_random
from llmpy.kernels.cpu.weights import PACKED, Weight
from llmpy.kernels.cpu.workspace import scratch

BLOCK = 65536  # numbers to a task
ROWS, COLUMNS = BFLOAT16.NR, 16 * BFLOAT16.NR  # of a weight to a task: whole panels, and 100 KB in the second cache
NR = BFLOAT16.NR
pack_b, stream_b = BFLOAT16.pack_b, BFLOAT16.stream_b


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale, weight=None, rounding=0):
    """p, g, m, v [n]: one step; `step` counts from 1; `grad_scale` multiplies g (clipping). m, v and p are updated.

    With a `weight` they are [OC, C], and it becomes the new p in bfloat16: the nearest, or where `rounding` is not 0,
    up or down at random with that seed (32 bits), so that the mean is p.
    """
    rate = lr / (1 - beta1**step)
    numbers = (rate, 1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**step), eps, lr * weight_decay, grad_scale)
    if weight is None:
        _adamw(p, g, m, v, *numbers)
    else:
        _run(weight, p, g, m, v, numbers, True, rounding)


def pack_weight(weight, w, rounding=0):
    """w, float32 [OC, C] -> the weight; `rounding` as above."""
    _run(weight, w, w, w, w, (0.0,) * 7, False, rounding)


def _run(weight: Weight, p, g, m, v, numbers, update, rounding):
    OC, C = weight.shape
    rows, columns = weight.addresses
    space = scratch("packed weight", get_num_threads(), ROWS * COLUMNS)
    counter = scratch("packed weight count", 8, dtype=np.int64)
    depths = BFLOAT16.padded(OC), BFLOAT16.padded(C)
    _adamw_weight(p, g, m, v, *numbers, update, rounding, rows, columns, *depths, space, counter, get_num_threads())


@helper
def _update(p, g, m, v, rate, one_minus_beta1, one_minus_beta2, v_scale, eps, decay, grad_scale):
    """rate = lr / (1 - beta1^step) and v_scale = 1 / sqrt(1 - beta2^step) carry the corrections of the two biases."""
    for i in range(p.size):
        grad = g[i] * grad_scale
        m[i] += one_minus_beta1 * (grad - m[i])
        v[i] += one_minus_beta2 * (grad * grad - v[i])
        p[i] -= rate * m[i] / (np.sqrt(v[i]) * v_scale + eps) + decay * p[i]


@kernel(vector, vector, vector, vector, f32, f32, f32, f32, f32, f32, f32)
def _adamw(p, g, m, v, rate, one_minus_beta1, one_minus_beta2, v_scale, eps, decay, grad_scale):
    for block in prange((p.size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min(p.size, (block + 1) * BLOCK)
        # Views counted from 0: an index that might be negative keeps LLVM from vectorising.
        p_, g_, m_, v_ = p[start:end], g[start:end], m[start:end], v[start:end]
        _update(p_, g_, m_, v_, rate, one_minus_beta1, one_minus_beta2, v_scale, eps, decay, grad_scale)


@helper
def _round_row(out, p, index, rounding):
    """p -> out, rounded at random; `index` is the first number's place in the matrix."""
    for i in range(out.size):
        out[i] = round_at_random(p[i], index + i, rounding)


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


_weight_signature = (
    *(matrix,) * 4, *(f32,) * 7, boolean, i64, i64, i64, i64, i64, matrix, i64[::1], i64
)  # fmt: skip


@kernel(*_weight_signature, precisions=("bfloat16",))
def _adamw_weight(
    p, g, m, v, rate, one_minus_beta1, one_minus_beta2, v_scale, eps, decay, grad_scale,
    update, rounding, rows, columns, OC_depth, C_depth, space, counter, threads,
):  # fmt: skip
    """Tasks are blocks of ROWS x COLUMNS: updated, rounded, and packed both ways before they leave the cache."""
    OC, C = p.shape
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
            for r in range(height):
                p_ = p[r0 + r, c0 : c0 + width]
                if update:
                    g_, m_, v_ = g[r0 + r, c0 : c0 + width], m[r0 + r, c0 : c0 + width], v[r0 + r, c0 : c0 + width]
                    _update(p_, g_, m_, v_, rate, one_minus_beta1, one_minus_beta2, v_scale, eps, decay, grad_scale)
                if rounding != 0:
                    _round_row(block[r * width : (r + 1) * width], p_, (r0 + r) * C + c0, rounding)
            source, stride = (block.ctypes.data, width) if rounding != 0 else (p[r0, c0:].ctypes.data, C)
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
