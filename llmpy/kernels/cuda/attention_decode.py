"""Attention of one token of each of a few sequences, over caches of keys and values."""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.array import DeviceArray
from llmpy.kernels.cuda.device import INTERPRETED
from llmpy.kernels.cuda.launch import launch, power_of_2

BLOCK = 512 if INTERPRETED else 32


def attention_decode(
    y: DeviceArray,
    q: DeviceArray,
    k_cache: DeviceArray,
    v_cache: DeviceArray,
    positions: DeviceArray,
    slots: DeviceArray,
) -> None:
    """q [S, NH, hs] of the newest tokens, caches [slots, T, NKV, hs], positions int32 [S] -> y [S, NH, hs] over keys
    0..position of the caches slots int32 [S]."""
    S, NH, hs = q.shape
    assert k_cache.strides == v_cache.strides
    launch(
        _decode, (NH, S), y, q, k_cache, v_cache, positions, slots, NH // k_cache.shape[2], hs, hs**-0.5,
        *k_cache.strides[:3], block=BLOCK, width=power_of_2(hs),
    )  # fmt: skip


@triton.jit
def _decode(
    y, q, keys, values, positions, slots, group, hs, scale, slot_stride, time_stride, head_stride,
    block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    head, s = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, width)
    there = c < hs
    at = (s * tl.num_programs(0) + head) * hs + c
    query = tl.load(q + at, mask=there, other=0.0) * scale
    place = tl.load(slots + s).to(tl.int64) * slot_stride + head // group * head_stride
    length = tl.load(positions + s) + 1
    top, total, mean = float("-inf"), 0.0, tl.zeros((width,), tl.float32)
    for start in range(0, length, block):
        t = start + tl.arange(0, block)
        inside = t < length
        row = place + t[:, None] * time_stride + c[None, :]
        mask = inside[:, None] & there[None, :]
        scores = tl.sum(tl.load(keys + row, mask=mask, other=0.0).to(tl.float32) * query[None, :], 1)
        scores = tl.where(inside, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        weight, before = tl.exp(scores - higher), tl.exp(top - higher)
        seen = tl.load(values + row, mask=mask, other=0.0).to(tl.float32)
        mean = mean * before + tl.sum(weight[:, None] * seen, 0)
        total, top = total * before + tl.sum(weight, 0), higher
    tl.store(y + at, mean / total, mask=there)
