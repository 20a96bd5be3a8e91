"""Causal self-attention in tiles: no T x T matrix, matmuls on the GEMM's micro-kernel, softmax on scores in the cache.

The forward pass is a transposed FlashAttention (Dao et al. 2022). Scores are computed as [keys, NR queries]: a query is
a lane of a vector, so softmax runs down the keys without sums across lanes, and its result has the layout of the packed
panel that the matmul with V reads (rounded, in bfloat16). The backward pass recomputes blocks of NR queries by NR keys
from q, k and the log-sum-exp, and adds the blocks up in a fixed order.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numba import get_num_threads, prange

from llmpy.kernels.cpu.gemm.epilogue import store_vector
from llmpy.kernels.cpu.gemm.microkernel_vector import ADD, STORE
from llmpy.kernels.cpu.gemm.microkernels import BFLOAT16, FLOAT32, Products
from llmpy.kernels.cpu.gemm.packing_ir import Source, make_transpose
from llmpy.kernels.cpu.jit.compile import acts3, acts4, cube, helper, i64, kernel, matrix
from llmpy.kernels.cpu.jit.intrinsics import fetch_add, widen
from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.kernels.cpu.jit.scratch import scratch
from llmpy.kernels.cpu.jit.vector_math import exp
from llmpy.kernels.cpu.rope import rope_backward, rope_forward

SQUARE = 16 if ISA.tile.width == 16 else 8  # side of the blocks that transpose results; divides every NR
LOWEST = np.float32(-3e38)
transpose = make_transpose(SQUARE, Source.FLOATS)


def attention_forward(y, lse, q, k, v, rope=None):
    """q [B, Tq, NH, hs], k and v [B, T, NKV, hs] -> y [B, Tq, NH, hs], and lse [B, NH, Tq] for the backward pass.

    The queries are those of the last Tq of T tokens. With rope = (cos, sin, interleaved), q and k are rotated in place
    first, and Tq = T.
    """
    if rope is not None:
        rope_forward(q, *rope)
        rope_forward(k, *rope)
    (B, T, NH, hs), earlier = q.shape, k.shape[1] - q.shape[1]
    P, threads = _products(q), get_num_threads()
    panels = -(-T // P.NR)
    parts = min(panels, -(-4 * threads // (B * NH)))  # of a head's queries, where there are fewer heads than threads
    rows, key_rows = _rows(P, hs), -(-(earlier + panels * P.NR) // P.NR) * P.NR
    size = 2 * key_rows * rows + rows * P.NR + 2 * _keys(P) * P.NR + 2 * rows * P.NR + 2 * P.NR
    space, count = scratch("attention", threads, size), scratch("attention count", 8, dtype=np.int64)
    run = _attention_forward_float32 if P is FLOAT32 else _attention_forward_bfloat16
    run(y.reshape(B, T, NH * hs), lse, q, k, v, space, count, threads, parts)


def attention_backward(dq, dk, dv, dy, q, k, v, y, lse, rope=None):
    """dy [B, T, NH, hs] -> dq [B, T, NH, hs], dk and dv [B, T, NKV, hs]; they may be q, k and v themselves.

    q and k are as `attention_forward` left them, rotated where it was called with a rope.
    """
    B, T, NH, hs = q.shape
    P, threads = _products(q), get_num_threads()
    size = 10 * -(-T // P.NR) * P.NR * _rows(P, hs) + 6 * P.NR * P.NR + _rows(P, hs) * P.NR + 2 * -(-T // P.NR) * P.NR
    space, count = scratch("attention", threads, size), scratch("attention count", 8, dtype=np.int64)
    run = _attention_backward_float32 if P is FLOAT32 else _attention_backward_bfloat16
    dy, y = dy.reshape(B, T, NH * hs), y.reshape(B, T, NH * hs)
    run(dq, dk, dv, dy, q, k, v, y, lse, space, count, threads)
    if rope is not None:
        rope_backward(dq, *rope)
        rope_backward(dk, *rope)


def _products(q: np.ndarray) -> Products:
    return BFLOAT16 if q.dtype == ml_dtypes.bfloat16 else FLOAT32


def _rows(P: Products, hs: int) -> int:
    """The head size, up to whole tiles, whole squares, and whole steps of the depth."""
    multiple = max(P.MR, P.step, SQUARE)
    return -(-hs // multiple) * multiple


def _keys(P: Products) -> int:
    """Keys to a block of the forward pass."""
    return 4 * P.NR // P.MR * P.MR


@helper
def _at(x, b, t, h):
    """The address of x[b, t, h, 0]."""
    return x.ctypes.data + b * x.strides[0] + t * x.strides[1] + h * x.strides[2]


@helper
def _put_rows(x, b, t0, h, block, ld, turned):
    """block, float32 [rows, ld queries], turned and then narrowed -> x[b, t0:, h], as much of it as there is; `turned`
    [ld * rows] is scratch."""
    T, hs, rows = x.shape[1], x.shape[3], block.shape[0] // ld
    for i in range(0, rows, SQUARE):
        for j in range(0, ld, SQUARE):
            transpose(block[i * ld + j :].ctypes.data, ld * 4, turned[j * rows + i :].ctypes.data, rows)
    for j in range(min(ld, T - t0)):
        store_vector(_at(x, b, t0 + j, h), turned[j * rows :].ctypes.data, hs, x.itemsize == 2)


def _make_panels(P: Products) -> tuple[Any, Any]:
    """pack_rows and pack_columns: a head's part of q, k, v or dy as A panels."""
    MR, item, step, pack_a = P.MR, P.item, P.step, P.pack_a

    @helper
    def pack_rows(panels, address, stride, rows, valid, hs, deep, wide):
        """Rows, `stride` numbers apart, of which `valid` are there, as panels of MR rows, `deep` deep (hs or more)."""
        for r in range(0, rows, MR):
            source = address + r * stride * (4 if wide else 2)
            pack_a(panels + r * deep * item, source, stride, max(0, min(MR, valid - r)), hs, True, wide)

    @helper
    def pack_columns(panels, address, stride, depth, valid, hs, wide):
        """The same turned: panels of MR of the hs columns, `depth` rows deep."""
        valid = max(0, min(depth, valid))
        whole = (valid + step - 1) // step * step
        for c in range(0, hs, MR):
            panel = panels + c * depth * item
            pack_a(panel, address + c * (4 if wide else 2), stride, min(MR, hs - c), valid, False, wide)
            pack_a(panel + whole * MR * item, np.uintp(0), 0, 0, depth - whole, False, wide)

    return pack_rows, pack_columns


# ---- forward -------------------------------------------------------------------------------------------------------


@helper
def _softmax_block(scores, NR, keys, first_key, first_query, top, total, output, rows, scale):
    """scores [keys, NR] of one block -> its numerators in place; top, total [NR] and output [rows, NR] follow the new
    maximum."""
    new_top, shrink = np.empty(NR, np.float32), np.empty(NR, np.float32)
    for j in range(NR):
        new_top[j] = top[j]
    for i in range(keys):
        row = scores[i * NR : (i + 1) * NR]
        if first_key + i > first_query:  # some queries of this panel lie before this key
            row[: min(NR, first_key + i - first_query)] = -np.inf
        for j in range(NR):
            row[j] = score = row[j] * scale
            new_top[j] = score if score > new_top[j] else new_top[j]
    for j in range(NR):
        shrink[j] = exp(top[j] - new_top[j])
        top[j] = new_top[j]
        total[j] *= shrink[j]
    for i in range(keys):
        row = scores[i * NR : (i + 1) * NR]
        for j in range(NR):
            row[j] = numerator = exp(row[j] - new_top[j])
            total[j] += numerator
    for i in range(rows):
        row = output[i * NR : (i + 1) * NR]
        for j in range(NR):
            row[j] *= shrink[j]


def _make_forward(P: Products) -> Any:
    MR, NR, item, step, tile, pack_b = P.MR, P.NR, P.item, P.step, P.tile, P.pack_b
    begin, end, KEYS, multiple = P.begin, P.end, _keys(P), max(P.MR, P.step, SQUARE)
    pack_rows, pack_columns = _make_panels(P)
    as_they_lie = item == 4  # the scores are a panel already

    @helper
    def forward_tasks(y, lse, q, k, v, space, counter, parts):
        """One thread's share. A task is a head and a part of its queries."""
        (B, T, NH, hs), T_keys = q.shape, k.shape[1]
        earlier = T_keys - T  # the keys before the first query's own
        group, wide = NH // k.shape[2], q.itemsize == 4
        rows, panels = (hs + multiple - 1) // multiple * multiple, (T + NR - 1) // NR
        used, deep = (hs + MR - 1) // MR * MR, (hs + step - 1) // step * step
        scale = np.float32(1 / np.sqrt(hs))
        size = (earlier + panels * NR + NR - 1) // NR * NR * rows
        k_panels, v_panels, q_panel = space.ctypes.data, space[size:].ctypes.data, space[2 * size :].ctypes.data
        start = 2 * size + rows * NR
        scores, numerators = space[start : start + KEYS * NR], space[start + KEYS * NR :].ctypes.data
        start += 2 * KEYS * NR
        output, turned = space[start : start + rows * NR], space[start + rows * NR : start + 2 * rows * NR]
        start += 2 * rows * NR
        top, total = space[start : start + NR], space[start + NR : start + 2 * NR]
        y_rows = y.reshape(B, T, NH, hs)
        begin()
        while True:
            task = fetch_add(counter)
            if task >= B * NH * parts:
                break
            part, b, h = task % parts, task // parts // NH, task // parts % NH
            first, last = panels * part // parts, panels * (part + 1) // parts
            keys_end, stride = (earlier + last * NR + NR - 1) // NR * NR, k.strides[1] // k.itemsize
            pack_rows(k_panels, _at(k, b, 0, h // group), stride, keys_end, T_keys, hs, deep, wide)
            pack_columns(v_panels, _at(v, b, 0, h // group), v.strides[1] // v.itemsize, keys_end, T_keys, hs, wide)
            for panel in range(first, last):
                t0 = panel * NR
                pack_b(q_panel, _at(q, b, t0, h), q.strides[1] // q.itemsize, min(NR, T - t0), hs, True, wide)
                top[:] = LOWEST
                total[:] = 0
                output[:] = 0
                panel_end = (earlier + t0 + NR + NR - 1) // NR * NR  # whole panels; later keys are masked
                for key in range(0, panel_end, KEYS):
                    keys = min(KEYS, panel_end - key)
                    for i in range(0, keys, MR):
                        target = scores.ctypes.data + i * NR * 4
                        tile(deep, k_panels + (key + i) * deep * item, q_panel, target, NR, STORE)
                    _softmax_block(scores, NR, keys, key, earlier + t0, top, total, output, used, scale)
                    if not as_they_lie:
                        pack_b(numerators, scores.ctypes.data, NR, NR, keys, False, True)
                    p = scores.ctypes.data if as_they_lie else numerators
                    for i in range(0, used, MR):
                        v_panel = v_panels + (i * keys_end + key * MR) * item
                        tile(keys, v_panel, p, output.ctypes.data + i * NR * 4, NR, ADD)
                for j in range(min(NR, T - t0)):
                    lse[b, h, t0 + j] = top[j] + np.log(total[j])
                for j in range(NR):
                    total[j] = np.float32(1) / total[j]
                for i in range(hs):
                    row = output[i * NR : (i + 1) * NR]
                    for j in range(NR):
                        row[j] *= total[j]
                _put_rows(y_rows, b, t0, h, output, NR, turned)
        end()

    return forward_tasks


_forward_tasks_float32, _forward_tasks_bfloat16 = _make_forward(FLOAT32), _make_forward(BFLOAT16)
_forward_signature = (acts3, cube, acts4, acts4, acts4, matrix, i64[::1], i64, i64)


@kernel(*_forward_signature, precisions=("float32",))
def _attention_forward_float32(y, lse, q, k, v, space, counter, threads, parts):
    counter[0] = 0
    for thread in prange(threads):
        _forward_tasks_float32(y, lse, q, k, v, space[thread], counter.ctypes.data, parts)


@kernel(*_forward_signature, precisions=("bfloat16",))
def _attention_forward_bfloat16(y, lse, q, k, v, space, counter, threads, parts):
    counter[0] = 0
    for thread in prange(threads):
        _forward_tasks_bfloat16(y, lse, q, k, v, space[thread], counter.ctypes.data, parts)


# ---- backward ------------------------------------------------------------------------------------------------------


@helper
def _score_gradients(p, dp, NR, lse, mean, query, key, scale):
    """A block [NR queries, NR keys]: scores p and dp -> the probabilities, and the gradients of the scores."""
    for i in range(NR):
        row_lse, row_mean = lse[query + i], mean[query + i]
        p_row, dp_row = p[i * NR : (i + 1) * NR], dp[i * NR : (i + 1) * NR]
        for j in range(NR):
            p_row[j] = exp(p_row[j] * scale - row_lse)
        if query == key:  # the diagonal: keys after the query count for nothing
            p_row[i + 1 :] = 0
        for j in range(NR):
            dp_row[j] = p_row[j] * (dp_row[j] - row_mean) * scale


def _make_backward(P: Products) -> Any:
    MR, NR, item, step, tile, pack_b = P.MR, P.NR, P.item, P.step, P.tile, P.pack_b
    begin, end, multiple = P.begin, P.end, max(P.MR, P.step, SQUARE)
    pack_rows, pack_columns = _make_panels(P)
    as_they_lie = item == 4

    @helper
    def backward_tasks(dq, dk, dv, dy, q, k, v, y, lse, space, counter):
        """One thread's share. A task is a key/value head with the query heads that share it."""
        B, T, NH, hs = q.shape
        NKV, wide = k.shape[2], q.itemsize == 4
        group = NH // NKV
        rows, panels = (hs + multiple - 1) // multiple * multiple, (T + NR - 1) // NR
        used, deep = (hs + MR - 1) // MR * MR, (hs + step - 1) // step * step
        scale = np.float32(1 / np.sqrt(hs))
        size = panels * NR * rows  # of each of the ten buffers below
        q_rows, dy_rows = space.ctypes.data, space[size:].ctypes.data
        q_columns, dy_columns = space[2 * size :].ctypes.data, space[3 * size :].ctypes.data
        k_rows, v_rows, k_columns = (
            space[4 * size :].ctypes.data,
            space[5 * size :].ctypes.data,
            space[6 * size :].ctypes.data,
        )
        dq_t, dk_t, dv_t = space[7 * size : 8 * size], space[8 * size : 9 * size], space[9 * size : 10 * size]
        start, block = 10 * size, NR * NR
        p, dp = space[start : start + block], space[start + block : start + 2 * block]
        start += 2 * block
        p_panel, dp_panel = space[start:].ctypes.data, space[start + block :].ctypes.data
        dp_t_panel = space[start + 2 * block :].ctypes.data
        if as_they_lie:
            p_panel, dp_panel = p.ctypes.data, dp.ctypes.data
        start += 4 * block
        turned = space[start : start + rows * NR]
        start += rows * NR
        row_lse, mean = space[start : start + panels * NR], space[start + panels * NR : start + 2 * panels * NR]
        k_stride, v_stride, q_stride = (
            k.strides[1] // k.itemsize,
            v.strides[1] // v.itemsize,
            q.strides[1] // q.itemsize,
        )
        dy_at, dy_stride = dy.ctypes.data, dy.shape[2]
        begin()
        while True:
            task = fetch_add(counter)
            if task >= B * NKV:
                break
            b, h_kv = task // NKV, task % NKV
            for t0 in range(0, panels * NR, NR):
                left = T - t0
                pack_b(k_rows + t0 * deep * item, _at(k, b, t0, h_kv), k_stride, min(NR, left), hs, True, wide)
                pack_b(v_rows + t0 * deep * item, _at(v, b, t0, h_kv), v_stride, min(NR, left), hs, True, wide)
                pack_columns(k_columns + t0 * rows * item, _at(k, b, t0, h_kv), k_stride, NR, left, hs, wide)
            dk_t[:] = 0
            dv_t[:] = 0
            for h in range(h_kv * group, (h_kv + 1) * group):
                row_lse[:] = 0
                mean[:] = 0
                for t in range(T):
                    total = np.float32(0)
                    dy_row, y_row = dy[b, t, h * hs : (h + 1) * hs], y[b, t, h * hs : (h + 1) * hs]
                    for c in range(dy_row.size):
                        total += widen(dy_row[c]) * widen(y_row[c])
                    mean[t], row_lse[t] = total, lse[b, h, t]
                dy_head = dy_at + (b * T * dy_stride + h * hs) * dy.itemsize
                pack_rows(q_rows, _at(q, b, 0, h), q_stride, panels * NR, T, hs, deep, wide)
                pack_rows(dy_rows, dy_head, dy_stride, panels * NR, T, hs, deep, wide)
                for t0 in range(0, panels * NR, NR):
                    at = t0 * rows * item
                    pack_columns(q_columns + at, _at(q, b, t0, h), q_stride, NR, T - t0, hs, wide)
                    dy_block = dy_head + t0 * dy_stride * dy.itemsize
                    pack_columns(dy_columns + at, dy_block, dy_stride, NR, T - t0, hs, wide)
                dq_t[:] = 0
                for key in range(0, panels * NR, NR):
                    for query in range(key, panels * NR, NR):
                        for i in range(0, NR, MR):
                            at_query, at_key, at = (query + i) * deep * item, key * deep * item, i * NR * 4
                            tile(deep, q_rows + at_query, k_rows + at_key, p.ctypes.data + at, NR, STORE)
                            tile(deep, dy_rows + at_query, v_rows + at_key, dp.ctypes.data + at, NR, STORE)
                        _score_gradients(p, dp, NR, row_lse, mean, query, key, scale)
                        if not as_they_lie:
                            pack_b(p_panel, p.ctypes.data, NR, NR, NR, False, True)
                            pack_b(dp_panel, dp.ctypes.data, NR, NR, NR, False, True)
                        pack_b(dp_t_panel, dp.ctypes.data, NR, NR, NR, True, True)
                        for i in range(0, used, MR):
                            key_panel, query_panel = (key * rows + i * NR) * item, (query * rows + i * NR) * item
                            at_key, at_query = (key * rows + i * NR) * 4, (query * rows + i * NR) * 4
                            tile(NR, dy_columns + query_panel, p_panel, dv_t.ctypes.data + at_key, NR, ADD)
                            tile(NR, q_columns + query_panel, dp_panel, dk_t.ctypes.data + at_key, NR, ADD)
                            tile(NR, k_columns + key_panel, dp_t_panel, dq_t.ctypes.data + at_query, NR, ADD)
                for t0 in range(0, T, NR):
                    _put_rows(dq, b, t0, h, dq_t[t0 * rows : (t0 + NR) * rows], NR, turned)
            for t0 in range(0, T, NR):
                _put_rows(dk, b, t0, h_kv, dk_t[t0 * rows : (t0 + NR) * rows], NR, turned)
                _put_rows(dv, b, t0, h_kv, dv_t[t0 * rows : (t0 + NR) * rows], NR, turned)
        end()

    return backward_tasks


_backward_tasks_float32, _backward_tasks_bfloat16 = _make_backward(FLOAT32), _make_backward(BFLOAT16)
_backward_signature = (*(acts4,) * 3, acts3, *(acts4,) * 3, acts3, cube, matrix, i64[::1], i64)


@kernel(*_backward_signature, precisions=("float32",))
def _attention_backward_float32(dq, dk, dv, dy, q, k, v, y, lse, space, counter, threads):
    counter[0] = 0
    for thread in prange(threads):
        _backward_tasks_float32(dq, dk, dv, dy, q, k, v, y, lse, space[thread], counter.ctypes.data)


@kernel(*_backward_signature, precisions=("bfloat16",))
def _attention_backward_bfloat16(dq, dk, dv, dy, q, k, v, y, lse, space, counter, threads):
    counter[0] = 0
    for thread in prange(threads):
        _backward_tasks_bfloat16(dq, dk, dv, dy, q, k, v, y, lse, space[thread], counter.ctypes.data)
