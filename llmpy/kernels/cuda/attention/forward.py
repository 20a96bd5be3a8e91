"""Causal self-attention with grouped queries; each program computes a block of queries (Dao 2023, FlashAttention-2).

The softmax runs online over the keys: each row keeps the largest score and the sum of exponentials so far, and rescales
its sums when a larger score appears. Scores are exponents of 2.
"""

from __future__ import annotations

from math import log2, sqrt

import triton
import triton.language as tl

from llmpy.kernels.cuda.attention.block_sizes import configuration
from llmpy.kernels.cuda.attention.tiles import LN2, rows_of, scores, shape, store_rows, tiles, whole_blocks
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.launch import cdiv, launch

Rope = tuple[DeviceArray, DeviceArray, bool]  # cos, sin [maxT, hs/2], and whether a pair of channels are neighbours


def attention_forward(
    y: DeviceArray, lse: DeviceArray, q: DeviceArray, k: DeviceArray, v: DeviceArray, rope: Rope | None = None
) -> None:
    """q [B, Tq, NH, hs], k and v [B, T, NKV, hs] -> y [B, Tq, NH, hs], and lse [B, NH, Tq] for the backward pass.

    The queries are those of the last Tq of T tokens. rope = (cos, sin, interleaved) as for rope_forward: the
    kernel rotates q and k as it reads them, and leaves them unrotated in memory.
    """
    (B, Tq, NH, hs), (_, T, NKV, _) = q.shape, k.shape
    cos, sin = (q, q) if rope is None else rope[:2]
    options = chosen("forward", q, rope)
    launch(
        _forward, (cdiv(Tq, options["queries"]), B * NH), y, lse, q, k, v, cos, sin, Tq, T, NH, NH // NKV,
        *strides(y), *strides(q), *strides(k), *strides(v), score_scale(hs), **shape(hs, rope), **options,
    )  # fmt: skip


@triton.jit
def _more_keys(
    q1, q2, top, total, sums, k, v, k_stride, v_stride, start, position, T, cos, sin, scale,
    size: tl.constexpr, width: tl.constexpr, wide: tl.constexpr, pairs: tl.constexpr,
    queries: tl.constexpr, keys: tl.constexpr, diagonal: tl.constexpr,
):  # fmt: skip
    """The softmax so far (largest score, sum of exponentials, sums of values) with the block of keys from `start`."""
    k1, k2 = tiles(k, start, k_stride, T - start, cos, sin, start, size, keys, width, pairs, diagonal)
    product = scores(q1, q2, k1, k2, pairs)
    if diagonal:
        row = position + tl.arange(0, queries)[:, None]
        product = tl.where(row >= start + tl.arange(0, keys)[None, :], product, -float("inf"))
    higher = tl.maximum(top, tl.max(product, 1) * scale)
    share = tl.math.exp2(product * scale - higher[:, None])
    shrink = tl.math.exp2(top - higher)
    total = total * shrink + tl.sum(share, 1)
    values = rows_of(v, start, v_stride, T - start, size, keys, wide, diagonal)
    sums = tl.dot(share.to(values.dtype), values, sums * shrink[:, None], input_precision="ieee")
    return higher, total, sums


@triton.jit(do_not_specialize=["Tq", "T"])
def _forward(
    y, lse, q, k, v, cos, sin, Tq, T, heads, group,
    y_batch, y_row, y_head, q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    scale, size: tl.constexpr, width: tl.constexpr, wide: tl.constexpr, pairs: tl.constexpr,
    queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    # The last queries have the most keys: they begin first, and the short ones fill the end.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * queries
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    position = T - Tq + first
    k += batch * k_batch + (head // group) * k_head
    v += batch * v_batch + (head // group) * v_head
    q += batch * q_batch + head * q_head
    q1, q2 = tiles(q, first, q_row, Tq - first, cos, sin, position, size, queries, width, pairs, True)
    top = tl.full([queries], -float("inf"), tl.float32)
    total = tl.zeros([queries], tl.float32)
    sums = tl.zeros([queries, wide], tl.float32)
    seen_by_all = whole_blocks(position, keys, pairs)
    for start in range(0, seen_by_all, keys):
        top, total, sums = _more_keys(
            q1, q2, top, total, sums, k, v, k_row, v_row, start, position, T, cos, sin, scale,
            size, width, wide, pairs, queries, keys, False,
        )  # fmt: skip
    for start in range(seen_by_all, tl.minimum(position + queries, T), keys):
        top, total, sums = _more_keys(
            q1, q2, top, total, sums, k, v, k_row, v_row, start, position, T, cos, sin, scale,
            size, width, wide, pairs, queries, keys, True,
        )  # fmt: skip
    y += batch * y_batch + head * y_head
    store_rows(y, sums / total[:, None], first, y_row, Tq - first, size, queries, wide)
    row = tl.arange(0, queries)
    lse += tl.program_id(1).to(tl.int64) * Tq + first
    tl.store(lse + row, (top + tl.math.log2(total)) * LN2, mask=row < Tq - first)


def chosen(part: str, q: DeviceArray, rope: Rope | None) -> dict[str, int]:
    """The configuration of a kernel for the device of this process."""
    if device.INTERPRETED:
        return {"queries": 128, "keys": 128}
    major, minor = device.current().capability
    return configuration(part, q.shape[-1], q.dtype.itemsize == 2, 10 * major + minor, rope is not None)


def strides(x: DeviceArray) -> tuple[int, int, int]:
    """The strides, in elements, of sequences, tokens and heads of x [B, T, heads, hs]."""
    return x.strides[0], x.strides[1], x.strides[2]


def score_scale(head_size: int) -> float:
    """1 / sqrt(hs), for powers of 2."""
    return log2(2.718281828459045) / sqrt(head_size)
