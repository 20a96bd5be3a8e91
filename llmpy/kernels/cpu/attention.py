"""Causal self-attention in tiles: no T x T matrix, products on the GEMM's micro-kernel, softmax while the scores are in
the cache.

The forward pass is FlashAttention's (Dao et al. 2022) turned on its side. Scores are made transposed, [keys, NR
queries]: a query is a lane of a vector, softmax runs down the keys with no sums across lanes, and what it leaves is, as
it lies, the panel that the product with V reads. The backward pass works on blocks of NR queries by NR keys, made again
from q, k and the log-sum-exp, and adds the blocks up in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, prange

from llmpy.kernels.cpu.compile import cube, helper, i32, i64, kernel, matrix, strided4
from llmpy.kernels.cpu.gemm import MR, NR, pack_a, pack_b, tile
from llmpy.kernels.cpu.isa import ISA
from llmpy.kernels.cpu.microkernel import ADD, STORE, fetch_add, make_transpose
from llmpy.kernels.cpu.vector_math import exp
from llmpy.kernels.cpu.workspace import scratch

KEYS = 4 * NR // MR * MR  # keys to a block of the forward pass
SQUARE = min(ISA.tile.width, NR & -NR)
transpose = make_transpose(SQUARE)
LOWEST = np.float32(-3e38)


def attention_forward(y, lse, q, k, v):
    """q [B, T, NH, hs], k and v [B, T, NKV, hs] -> y [B, T, NH, hs], and lse [B, NH, T] for the backward pass."""
    B, T, NH, hs = q.shape
    threads = get_num_threads()
    panels = -(-T // NR)
    parts = min(
        panels, -(-4 * threads // (B * NH))
    )  # of a head's queries, where there are fewer heads than threads could take
    size = 2 * panels * NR * _padded(hs) + hs * NR + KEYS * NR + _padded(hs) * NR + 2 * NR
    space = scratch("attention", threads, size)
    _attention_forward(y, lse, q, k, v, space, scratch("attention counter", 8, dtype=np.int64), threads, parts)


def attention_backward(dq, dk, dv, dy, q, k, v, y, lse):
    """dy [B, T, NH, hs] -> dq [B, T, NH, hs], dk and dv [B, T, NKV, hs]; they may be q, k and v themselves."""
    T, hs = q.shape[1], q.shape[3]
    threads = get_num_threads()
    size = 10 * -(-T // NR) * NR * _padded(hs) + 3 * NR * NR + 2 * -(-T // NR) * NR
    space = scratch("attention", threads, size)
    _attention_backward(
        dq, dk, dv, dy, q, k, v, y, lse, space, scratch("attention counter", 8, dtype=np.int64), threads
    )


def attention_decode(y, q, k_cache, v_cache, positions):
    """q [S, NH, hs] of the newest tokens, caches [S, T, NKV, hs], positions [S] -> y [S, NH, hs] over keys
    0..position."""
    S, NH, _ = q.shape
    _attention_decode(y, q, k_cache, v_cache, positions, scratch("attention scores", S * NH, k_cache.shape[1]))


def _padded(hs):
    return -(-hs // MR) * MR


@helper
def _at(x, b, t, h):
    """The address of x[b, t, h, 0]."""
    return x.ctypes.data + b * x.strides[0] + t * x.strides[1] + h * x.strides[2]


@helper
def _pack_rows_a(panels, x, b, t0, rows, h, hs):
    """x[b, t0 : t0 + rows, h] as A panels of MR rows, depth hs; zeros after the last row of the sequence, up to
    `rows`."""
    T, stride = x.shape[1], x.strides[1] // 4
    for r in range(0, rows, MR):
        pack_a(panels + r * hs * 4, _at(x, b, t0 + r, h), stride, max(0, min(MR, T - t0 - r)), hs, True)


@helper
def _pack_columns_a(panels, x, b, t0, depth, h, hs):
    """x[b, t0 : t0 + depth, h] transposed as A panels of MR of its columns, `depth` deep; zeros below the end of the
    sequence."""
    T, stride = x.shape[1], x.strides[1] // 4
    valid = max(0, min(depth, T - t0))
    for c in range(0, hs, MR):
        panel = panels + c * depth * 4
        pack_a(panel, _at(x, b, t0, h) + c * 4, stride, min(MR, hs - c), valid, False)
        pack_a(panel + valid * MR * 4, np.uintp(0), 0, 0, depth - valid, False)


@helper
def _softmax_block(scores, keys, first_key, first_query, top, total, output, rows, scale):
    """scores [keys, NR] of one block -> its numerators in place; top, total [NR] and output [rows, NR] follow the new
    maximum."""
    new_top = np.empty(NR, np.float32)
    shrink = np.empty(NR, np.float32)
    for j in range(NR):
        new_top[j] = top[j]
    for i in range(keys):
        if first_key + i > first_query:  # some queries of this panel lie before this key
            for j in range(min(NR, first_key + i - first_query)):
                scores[i, j] = -np.inf
        for j in range(NR):
            scores[i, j] = score = scores[i, j] * scale
            new_top[j] = score if score > new_top[j] else new_top[j]
    for j in range(NR):
        shrink[j] = exp(top[j] - new_top[j])
        top[j] = new_top[j]
        total[j] *= shrink[j]
    for i in range(keys):
        for j in range(NR):
            scores[i, j] = numerator = exp(scores[i, j] - new_top[j])
            total[j] += numerator
    for i in range(rows):
        for j in range(NR):
            output[i, j] *= shrink[j]


@helper
def _forward_tasks(y, lse, q, k, v, space, counter, parts):
    """One thread's share. A task is a head and a part of its queries."""
    B, T, NH, hs = q.shape
    group = NH // k.shape[2]
    rows, panels = (hs + MR - 1) // MR * MR, (T + NR - 1) // NR
    scale = np.float32(1 / np.sqrt(hs))
    end = panels * NR * rows
    k_panels, v_panels = space[:end].ctypes.data, space[end:].ctypes.data
    start = 2 * end
    q_panel = space[start:].ctypes.data
    start += hs * NR
    scores = space[start : start + KEYS * NR].reshape(KEYS, NR)
    start += KEYS * NR
    output = space[start : start + rows * NR].reshape(rows, NR)
    start += rows * NR
    top, total = space[start : start + NR], space[start + NR : start + 2 * NR]
    while True:
        task = fetch_add(counter)
        if task >= B * NH * parts:
            return
        part, b, h = task % parts, task // parts // NH, task // parts % NH
        first, last = panels * part // parts, panels * (part + 1) // parts
        keys_end = min(panels, last) * NR
        _pack_rows_a(k_panels, k, b, 0, keys_end, h // group, hs)
        _pack_columns_a(v_panels, v, b, 0, keys_end, h // group, hs)
        for panel in range(first, last):
            t0 = panel * NR
            queries = min(NR, T - t0)
            pack_b(q_panel, _at(q, b, t0, h), q.strides[1] // 4, queries, hs, True)
            top[:] = LOWEST
            total[:] = 0
            output[:] = 0
            for key in range(0, t0 + NR, KEYS):
                keys = min(KEYS, t0 + NR - key)
                for i in range(0, keys, MR):
                    tile(hs, k_panels + (key + i) * hs * 4, q_panel, scores.ctypes.data + i * NR * 4, NR, STORE)
                _softmax_block(scores, keys, key, t0, top, total, output, rows, scale)
                for i in range(0, rows, MR):
                    tile(
                        keys,
                        v_panels + (i * keys_end + key * MR) * 4,
                        scores.ctypes.data,
                        output.ctypes.data + i * NR * 4,
                        NR,
                        True,
                    )
            for j in range(queries):
                lse[b, h, t0 + j] = top[j] + np.log(total[j])
                for i in range(hs):
                    y[b, t0 + j, h, i] = output[i, j] / total[j]


@kernel(strided4, cube, strided4, strided4, strided4, matrix, i64[::1], i64, i64)
def _attention_forward(y, lse, q, k, v, space, counter, threads, parts):
    counter[0] = 0
    for thread in prange(threads):
        _forward_tasks(y, lse, q, k, v, space[thread], counter.ctypes.data, parts)


@helper
def _score_gradients(p, dp, dp_t, lse, mean, query, key, scale):
    """A block: scores p and dp [NR queries, NR keys] -> the probabilities, and the gradients of the scores, plain and
    transposed."""
    for i in range(NR):
        row_lse, row_mean = lse[query + i], mean[query + i]
        for j in range(NR):
            p[i, j] = exp(p[i, j] * scale - row_lse)
        if query == key:  # the diagonal: keys after the query count for nothing
            for j in range(i + 1, NR):
                p[i, j] = 0
        for j in range(NR):
            dp[i, j] = p[i, j] * (dp[i, j] - row_mean) * scale
    for i in range(0, NR, SQUARE):
        for j in range(0, NR, SQUARE):
            transpose(dp.ctypes.data + (i * NR + j) * 4, NR, dp_t.ctypes.data + (j * NR + i) * 4, NR)


@helper
def _unpack(x, b, h, blocks, rows):
    """blocks [panels, rows, NR], each transposed, -> x[b, :, h]."""
    T, hs = x.shape[1], x.shape[3]
    for t in range(T):
        for c in range(hs):
            x[b, t, h, c] = blocks[(t // NR * rows + c) * NR + t % NR]


@helper
def _backward_tasks(dq, dk, dv, dy, q, k, v, y, lse, space, counter):
    """One thread's share. A task is a key/value head with the query heads that share it."""
    B, T, NH, hs = q.shape
    NKV = k.shape[2]
    group = NH // NKV
    rows, panels = (hs + MR - 1) // MR * MR, (T + NR - 1) // NR
    scale = np.float32(1 / np.sqrt(hs))
    size = panels * NR * rows  # of each of the ten buffers below
    at = space.ctypes.data
    q_rows, dy_rows, q_columns, dy_columns = at, at + size * 4, at + 2 * size * 4, at + 3 * size * 4
    k_rows, v_rows, k_columns = at + 4 * size * 4, at + 5 * size * 4, at + 6 * size * 4
    dq_t, dk_t, dv_t = space[7 * size : 8 * size], space[8 * size : 9 * size], space[9 * size : 10 * size]
    start = 10 * size
    p = space[start : start + NR * NR].reshape(NR, NR)
    dp = space[start + NR * NR : start + 2 * NR * NR].reshape(NR, NR)
    dp_t = space[start + 2 * NR * NR : start + 3 * NR * NR].reshape(NR, NR)
    start += 3 * NR * NR
    row_lse, mean = space[start : start + panels * NR], space[start + panels * NR : start + 2 * panels * NR]
    p_at, dp_at, dp_t_at = p.ctypes.data, dp.ctypes.data, dp_t.ctypes.data
    while True:
        task = fetch_add(counter)
        if task >= B * NKV:
            return
        b, h_kv = task // NKV, task % NKV
        for panel in range(panels):
            t0 = panel * NR
            pack_b(k_rows + t0 * hs * 4, _at(k, b, t0, h_kv), k.strides[1] // 4, min(NR, T - t0), hs, True)
            pack_b(v_rows + t0 * hs * 4, _at(v, b, t0, h_kv), v.strides[1] // 4, min(NR, T - t0), hs, True)
            _pack_columns_a(k_columns + t0 * rows * 4, k, b, t0, NR, h_kv, hs)
        dk_t[:] = 0
        dv_t[:] = 0
        for h in range(h_kv * group, (h_kv + 1) * group):
            row_lse[:] = 0
            mean[:] = 0
            for t in range(T):
                total = np.float32(0)
                for c in range(hs):
                    total += dy[b, t, h, c] * y[b, t, h, c]
                mean[t], row_lse[t] = total, lse[b, h, t]
            _pack_rows_a(q_rows, q, b, 0, panels * NR, h, hs)
            _pack_rows_a(dy_rows, dy, b, 0, panels * NR, h, hs)
            for panel in range(panels):
                _pack_columns_a(q_columns + panel * NR * rows * 4, q, b, panel * NR, NR, h, hs)
                _pack_columns_a(dy_columns + panel * NR * rows * 4, dy, b, panel * NR, NR, h, hs)
            dq_t[:] = 0
            for key in range(0, panels * NR, NR):
                for query in range(key, panels * NR, NR):
                    for i in range(0, NR, MR):
                        tile(hs, q_rows + (query + i) * hs * 4, k_rows + key * hs * 4, p_at + i * NR * 4, NR, STORE)
                        tile(hs, dy_rows + (query + i) * hs * 4, v_rows + key * hs * 4, dp_at + i * NR * 4, NR, STORE)
                    _score_gradients(p, dp, dp_t, row_lse, mean, query, key, scale)
                    for i in range(0, rows, MR):
                        at_key, at_query = (key * rows + i * NR) * 4, (query * rows + i * NR) * 4
                        tile(NR, dy_columns + at_query, p_at, dv_t.ctypes.data + at_key, NR, ADD)
                        tile(NR, q_columns + at_query, dp_at, dk_t.ctypes.data + at_key, NR, ADD)
                        tile(NR, k_columns + at_key, dp_t_at, dq_t.ctypes.data + at_query, NR, ADD)
            _unpack(dq, b, h, dq_t, rows)
        _unpack(dk, b, h_kv, dk_t, rows)
        _unpack(dv, b, h_kv, dv_t, rows)


@kernel(strided4, strided4, strided4, strided4, strided4, strided4, strided4, strided4, cube, matrix, i64[::1], i64)
def _attention_backward(dq, dk, dv, dy, q, k, v, y, lse, space, counter, threads):
    counter[0] = 0
    for thread in prange(threads):
        _backward_tasks(dq, dk, dv, dy, q, k, v, y, lse, space[thread], counter.ctypes.data)


@kernel(cube, cube, strided4, strided4, i32[::1], matrix)
def _attention_decode(y, q, k_cache, v_cache, positions, scores):
    S, NH, hs = q.shape
    group = NH // k_cache.shape[2]
    scale = np.float32(1 / np.sqrt(hs))
    for task in prange(S * NH):
        s, h = task // NH, task % NH
        keys = positions[s] + 1
        top = LOWEST
        for t in range(keys):
            score = np.float32(0)
            for c in range(hs):
                score += q[s, h, c] * k_cache[s, t, h // group, c]
            scores[task, t] = score * scale
            top = max(top, scores[task, t])
        total = np.float32(0)
        for t in range(keys):
            scores[task, t] = exp(scores[task, t] - top)
            total += scores[task, t]
        for c in range(hs):
            y[s, h, c] = 0
        for t in range(keys):
            weight = scores[task, t] / total
            for c in range(hs):
                y[s, h, c] += weight * v_cache[s, t, h // group, c]
