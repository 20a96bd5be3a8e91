"""The backward pass of attention: recomputes the softmax from the log-sum-exp of each row (Dao 2023, FlashAttention-2).

Two kernels without shared outputs, so that results repeat bit by bit: one loops over the keys for a block of queries
(dq), the other over the queries for a block of keys (dk, dv), through all query heads of a group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.attention.forward import Rope, chosen, score_scale, strides
from llmpy.kernels.cuda.attention.tiles import (
    LN2,
    LOG2E,
    rows_of,
    scores,
    shape,
    store_gradient,
    store_rows,
    tiles,
    whole_blocks,
)
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.launch import cdiv, launch
from llmpy.kernels.cuda.runtime.workspace import scratch

COPIED = 64  # rows of a head that a program copies
PADDED = 128  # a multiple of every block of queries


def attention_backward(
    dq: DeviceArray,
    dk: DeviceArray,
    dv: DeviceArray,
    dy: DeviceArray,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    y: DeviceArray,
    lse: DeviceArray,
    rope: Rope | None = None,
) -> None:
    """dy [B, T, NH, hs] -> dq [B, T, NH, hs], dk and dv [B, T, NKV, hs]; they may be q, k and v themselves.

    With the rope of the forward pass, dq and dk are the gradients of q and k in memory, before the rotation.
    """
    B, T, NH, hs = q.shape
    NKV = k.shape[2]
    cos, sin = (q, q) if rope is None else rope[:2]
    padded = cdiv(T, PADDED) * PADDED
    means, logs = scratch("attention rows", 2, B, NH, padded, dtype="float32")
    # The second kernel reads all of q: where dq is q, it waits beside it.
    made = scratch("attention dq", B, T, NH, hs, dtype=q.dtype) if dq.address == q.address else dq
    constants, scale = shape(hs, rope), score_scale(hs)
    options = chosen("queries", q, rope)
    launch(
        _backward_queries, (cdiv(T, options["queries"]), B * NH),
        made, means, logs, dy, q, k, v, y, lse, cos, sin, T, padded, NH, NH // NKV,
        *strides(made), *strides(dy), *strides(q), *strides(k), *strides(v), *strides(y), scale, **constants, **options,
    )  # fmt: skip
    options = chosen("keys", q, rope)
    launch(
        _backward_keys, (cdiv(T, options["keys"]), B * NKV),
        dk, dv, means, logs, dy, q, k, v, cos, sin, T, padded, NKV, NH // NKV,
        *strides(dk), *strides(dv), *strides(dy), *strides(q), *strides(k), *strides(v), scale, **constants, **options,
    )  # fmt: skip
    if made is not dq:
        launch(
            _copy, (cdiv(T, COPIED), B * NH), dq, made, T, NH, *strides(dq), *strides(made),
            size=hs, wide=constants["wide"], rows=COPIED,
        )  # fmt: skip


@triton.jit
def _queries_gradient(
    dq1, dq2, q1, q2, dy, log, mean, k, v, k_row, v_row, start, first, T, cos, sin, scale,
    size: tl.constexpr, width: tl.constexpr, wide: tl.constexpr, pairs: tl.constexpr,
    queries: tl.constexpr, keys: tl.constexpr, diagonal: tl.constexpr,
):  # fmt: skip
    """dq / scale so far, with the block of keys from `start`."""
    k1, k2 = tiles(k, start, k_row, T - start, cos, sin, start, size, keys, width, pairs, diagonal)
    values = rows_of(v, start, v_row, T - start, size, keys, wide, diagonal)
    product = scores(q1, q2, k1, k2, pairs)
    if diagonal:
        row = first + tl.arange(0, queries)[:, None]
        product = tl.where(row >= start + tl.arange(0, keys)[None, :], product, -float("inf"))
    share = tl.math.exp2(product * scale - log[:, None])
    dshare = tl.dot(dy, tl.trans(values), input_precision="ieee")
    dscores = (share * (dshare - mean[:, None])).to(k1.dtype)
    dq1 = tl.dot(dscores, k1, dq1, input_precision="ieee")
    if pairs != "none":
        dq2 = tl.dot(dscores, k2, dq2, input_precision="ieee")
    return dq1, dq2


@triton.jit(do_not_specialize=["T"])
def _backward_queries(
    dq, means, logs, dy, q, k, v, y, lse, cos, sin, T, padded, heads, group,
    dq_batch, dq_row, dq_head, dy_batch, dy_row, dy_head, q_batch, q_row, q_head,
    k_batch, k_row, k_head, v_batch, v_row, v_head, y_batch, y_row, y_head,
    scale, size: tl.constexpr, width: tl.constexpr, wide: tl.constexpr, pairs: tl.constexpr,
    queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * queries
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    dy += batch * dy_batch + head * dy_head
    q += batch * q_batch + head * q_head
    k += batch * k_batch + (head // group) * k_head
    v += batch * v_batch + (head // group) * v_head
    y += batch * y_batch + head * y_head
    left = T - first
    row = tl.arange(0, queries)
    lse += tl.program_id(1).to(tl.int64) * T + first
    logs += tl.program_id(1).to(tl.int64) * padded + first
    means += tl.program_id(1).to(tl.int64) * padded + first
    # The sum over keys of share * dshare. The other kernel needs it too, and finds zeros past the end.
    dy_tile = rows_of(dy, first, dy_row, left, size, queries, wide, True)
    y_tile = rows_of(y, first, y_row, left, size, queries, wide, True)
    mean = tl.sum(dy_tile.to(tl.float32) * y_tile.to(tl.float32), 1)
    log = tl.load(lse + row, mask=row < left, other=0.0) * LOG2E
    tl.store(means + row, mean)
    tl.store(logs + row, log)
    q1, q2 = tiles(q, first, q_row, left, cos, sin, first, size, queries, width, pairs, True)
    dq1 = tl.zeros([queries, width], tl.float32)
    dq2 = tl.zeros([queries, width], tl.float32)
    seen_by_all = whole_blocks(first, keys, pairs)
    for start in range(0, seen_by_all, keys):
        dq1, dq2 = _queries_gradient(
            dq1, dq2, q1, q2, dy_tile, log, mean, k, v, k_row, v_row, start, first, T, cos, sin, scale,
            size, width, wide, pairs, queries, keys, False,
        )  # fmt: skip
    for start in range(seen_by_all, tl.minimum(first + queries, T), keys):
        dq1, dq2 = _queries_gradient(
            dq1, dq2, q1, q2, dy_tile, log, mean, k, v, k_row, v_row, start, first, T, cos, sin, scale,
            size, width, wide, pairs, queries, keys, True,
        )  # fmt: skip
    dq += batch * dq_batch + head * dq_head
    scale *= LN2
    store_gradient(dq, dq1 * scale, dq2 * scale, first, dq_row, left, cos, sin, first, size, queries, width, pairs)


@triton.jit
def _keys_gradient(
    dk1, dk2, dv, k1, k2, values, dy, q, dy_row, q_row, logs, means, first, start, T, cos, sin, scale,
    size: tl.constexpr, width: tl.constexpr, wide: tl.constexpr, pairs: tl.constexpr,
    queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    """dk / scale and dv so far, with the block of queries from `first`; transposed tiles are [keys, queries]."""
    left = T - first
    row = tl.arange(0, queries)
    q1, q2 = tiles(q, first, q_row, left, cos, sin, first, size, queries, width, pairs, True)
    # Rows past the end are zero except for the softmax, which is then multiplied by zero.
    log = tl.load(logs + first + row)
    product = scores(k1, k2, q1, q2, pairs)
    product = tl.where(first + row[None, :] >= start + tl.arange(0, keys)[:, None], product, -float("inf"))
    share = tl.math.exp2(product * scale - log[None, :])
    dy_tile = rows_of(dy, first, dy_row, left, size, queries, wide, True)
    dv = tl.dot(share.to(dy_tile.dtype), dy_tile, dv, input_precision="ieee")
    mean = tl.load(means + first + row)
    dshare = tl.dot(values, tl.trans(dy_tile), input_precision="ieee")
    dscores = (share * (dshare - mean[None, :])).to(q1.dtype)
    dk1 = tl.dot(dscores, q1, dk1, input_precision="ieee")
    if pairs != "none":
        dk2 = tl.dot(dscores, q2, dk2, input_precision="ieee")
    return dk1, dk2, dv


@triton.jit(do_not_specialize=["T"])
def _backward_keys(
    dk, dv, means, logs, dy, q, k, v, cos, sin, T, padded, kv_heads, group,
    dk_batch, dk_row, dk_head, dv_batch, dv_row, dv_head, dy_batch, dy_row, dy_head,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    scale, size: tl.constexpr, width: tl.constexpr, wide: tl.constexpr, pairs: tl.constexpr,
    queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * keys  # the first keys have the most queries
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = tl.program_id(1) % kv_heads
    left = T - start
    k += batch * k_batch + kv_head * k_head
    v += batch * v_batch + kv_head * v_head
    q += batch * q_batch
    dy += batch * dy_batch
    k1, k2 = tiles(k, start, k_row, left, cos, sin, start, size, keys, width, pairs, True)
    values = rows_of(v, start, v_row, left, size, keys, wide, True)
    dk1 = tl.zeros([keys, width], tl.float32)
    dk2 = tl.zeros([keys, width], tl.float32)
    dv_tile = tl.zeros([keys, wide], tl.float32)
    # All the query heads of the group in one loop, whose reading goes ahead from each to the next; and a mask for every
    # block, for a loop of its own for those on the diagonal takes registers that are not there.
    begin = start // queries
    blocks = tl.cdiv(T, queries) - begin
    for turn in range(group * blocks):
        head = kv_head * group + turn // blocks
        rows = (tl.program_id(1) // kv_heads * kv_heads * group + head).to(tl.int64) * padded
        dk1, dk2, dv_tile = _keys_gradient(
            dk1, dk2, dv_tile, k1, k2, values, dy + head * dy_head, q + head * q_head, dy_row, q_row,
            logs + rows, means + rows, (begin + turn % blocks) * queries, start, T, cos, sin, scale,
            size, width, wide, pairs, queries, keys,
        )  # fmt: skip
    dk += batch * dk_batch + kv_head * dk_head
    dv += batch * dv_batch + kv_head * dv_head
    scale *= LN2
    store_gradient(dk, dk1 * scale, dk2 * scale, start, dk_row, left, cos, sin, start, size, keys, width, pairs)
    store_rows(dv, dv_tile, start, dv_row, left, size, keys, wide)


@triton.jit(do_not_specialize=["T"])
def _copy(
    to, x, T, heads, to_batch, to_row, to_head, x_batch, x_row, x_head,
    size: tl.constexpr, wide: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * rows
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    value = rows_of(x + batch * x_batch + head * x_head, first, x_row, T - first, size, rows, wide, True)
    store_rows(to + batch * to_batch + head * to_head, value, first, to_row, T - first, size, rows, wide)
