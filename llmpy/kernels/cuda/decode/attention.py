"""Attention of one new query per sequence to its cache of keys and values, split over the context.

A sequence alone would occupy few programs. So the context is cut into spans, each with a softmax of its own, and a
second kernel adds them up in order (Dao et al. 2023, Flash-Decoding). The grid is that of a full cache, and where a
sequence is comes from the device: one captured CUDA graph serves every position.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.attention.forward import score_scale
from llmpy.kernels.cuda.attention.tiles import rows_of
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch, power_of_2
from llmpy.kernels.cuda.runtime.workspace import scratch

SPAN = 128  # keys of a program, at least
SPANS = 64  # of a context, at most: the second kernel holds them all at once


def attention_decode(
    y: DeviceArray,
    q: DeviceArray,
    k_cache: DeviceArray,
    v_cache: DeviceArray,
    positions: DeviceArray,
    slots: DeviceArray | None = None,
) -> None:
    """q [S, NH, hs] of the newest tokens, caches [slots, T, NKV, hs], positions int32 [S] -> y [S, NH, hs] over keys
    0..position of the caches slots int32 [S]; None: of the first S.

    The caches may be views of any strides, and bfloat16 while q is float32.
    """
    S, NH, hs = q.shape
    T, NKV = k_cache.shape[1:3]
    constants = spans_of(T, hs, NH // NKV)
    block, spans, wide = constants.pop("block"), constants["spans"], constants["wide"]
    sums = scratch("decode sums", S, NH, spans, wide, dtype="float32")
    tops, totals = scratch("decode rows", 2, S, NH, spans, dtype="float32")
    launch(
        _spans, (spans, S * NKV), sums, tops, totals, q, k_cache, v_cache, positions,
        positions if slots is None else slots, NKV, *q.strides[:2], *k_cache.strides[:3], *v_cache.strides[:3],
        score_scale(hs), chosen=slots is not None, **constants, num_warps=4, num_stages=2,
    )  # fmt: skip
    launch(
        _together, (S * NH,), y, sums, tops, totals, positions, NH, *y.strides[:2],
        size=hs, wide=wide, span=constants["span"], spans=spans, block=block, num_warps=4,
    )  # fmt: skip


@triton.jit
def _spans(
    sums, tops, totals, q, k, v, positions, slots, kv_heads,
    q_row, q_head, k_slot, k_row, k_head, v_slot, v_row, v_head, scale,
    size: tl.constexpr, wide: tl.constexpr, group: tl.constexpr, heads: tl.constexpr,
    span: tl.constexpr, keys: tl.constexpr, spans: tl.constexpr, chosen: tl.constexpr,
):  # fmt: skip
    """The query heads of a group over a span of its keys: sums [heads, wide], largest scores, sums of exponentials."""
    sequence = tl.program_id(1) // kv_heads
    kv_head = tl.program_id(1) % kv_heads
    position = tl.load(positions + sequence)
    begin = tl.program_id(0) * span
    if begin > position:
        return
    slot = (tl.load(slots + sequence) if chosen else sequence).to(tl.int64)
    k += slot * k_slot + kv_head * k_head
    v += slot * v_slot + kv_head * v_head
    q += sequence.to(tl.int64) * q_row + kv_head * group * q_head
    query = rows_of(q, 0, q_head, group, size, heads, wide, True).to(k.dtype.element_ty)
    top = tl.full([heads], -float("inf"), tl.float32)
    total = tl.zeros([heads], tl.float32)
    sums_tile = tl.zeros([heads, wide], tl.float32)
    for start in range(begin, tl.minimum(begin + span, position + 1), keys):
        left = position + 1 - start
        key = rows_of(k, start, k_row, left, size, keys, wide, True)
        product = tl.dot(query, tl.trans(key), input_precision="ieee")
        product = tl.where(tl.arange(0, keys)[None, :] < left, product, -float("inf"))
        higher = tl.maximum(top, tl.max(product, 1) * scale)
        share = tl.math.exp2(product * scale - higher[:, None])
        shrink = tl.math.exp2(top - higher)
        total = total * shrink + tl.sum(share, 1)
        value = rows_of(v, start, v_row, left, size, keys, wide, True)
        sums_tile = tl.dot(share.to(value.dtype), value, sums_tile * shrink[:, None], input_precision="ieee")
        top = higher
    head = tl.arange(0, heads)
    # [S, NH, spans]: the spans of a head lie together
    at = ((sequence * kv_heads + kv_head) * group + head) * spans + tl.program_id(0)
    tl.store(tops + at, top, mask=head < group)
    tl.store(totals + at, total, mask=head < group)
    places = sums + at.to(tl.int64)[:, None] * wide + tl.arange(0, wide)[None, :]
    tl.store(places, sums_tile, mask=head[:, None] < group)


@triton.jit
def _together(
    y, sums, tops, totals, positions, heads, y_row, y_head,
    size: tl.constexpr, wide: tl.constexpr, span: tl.constexpr, spans: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One query head: its spans up to its position, in order."""
    sequence = tl.program_id(0) // heads
    count = tl.load(positions + sequence) // span + 1
    index = tl.arange(0, block)
    at = tl.program_id(0) * spans + index
    inside = index < count
    top = tl.load(tops + at, mask=inside, other=-float("inf"))
    weight = tl.math.exp2(top - tl.max(top, 0))
    total = tl.sum(weight * tl.load(totals + at, mask=inside, other=0.0), 0)
    channel = tl.arange(0, wide)
    places = sums + at.to(tl.int64)[:, None] * wide + channel[None, :]
    value = tl.sum(weight[:, None] * tl.load(places, mask=inside[:, None], other=0.0), 0) / total
    y += sequence.to(tl.int64) * y_row + tl.program_id(0) % heads * y_head
    tl.store(y + channel, value.to(y.dtype.element_ty), mask=channel < size)


def spans_of(T: int, head_size: int, group: int) -> dict[str, int]:
    """The constants of both kernels for a cache of T tokens: they depend on nothing else, nor do the results."""
    span = max(SPAN, power_of_2(cdiv(T, SPANS)))
    return {
        "size": head_size,
        "wide": max(16, power_of_2(head_size)),
        "group": group,
        "heads": max(16, power_of_2(group)),  # rows of a product, of which the tensor cores have no fewer
        "span": span,
        "keys": SPAN if INTERPRETED else 64 if head_size <= 128 else 32,
        "spans": cdiv(T, span),
        "block": power_of_2(cdiv(T, span)),
    }
