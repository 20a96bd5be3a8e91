"""Tiles of a head's rows for the attention kernels: loading, storing, and rotating by the positions (RoPE).

A tile is a pair (first, second) of [rows, width]. Without rotary positions (`pairs` is "none"), width is the head size
and the second tile is the first. With rotary positions, each tile holds one channel of every pair, half a head. The dot
product of a query and a key is then the sum over both tiles, in any order of the channels; only stored tiles are put
back in order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.launch import power_of_2

LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x * LOG2E): the GPU has an instruction for exp2
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def rows_of(x, first, stride, left, size: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, cut: tl.constexpr):
    """[rows, width] from row `first`, zero past the head's `size`, and past the `left` rows that there are if `cut`."""
    row = tl.arange(0, rows)[:, None]
    channel = tl.arange(0, width)[None, :]
    at = x + tl.cast(first, tl.int64) * stride + row * stride + channel
    if cut:
        if size == width:
            return tl.load(at, mask=row < left, other=0.0)
        else:
            return tl.load(at, mask=(row < left) & (channel < size), other=0.0)
    else:
        if size == width:
            return tl.load(at)
        else:
            return tl.load(at, mask=channel < size, other=0.0)


@triton.jit
def store_rows(x, value, first, stride, left, size: tl.constexpr, rows: tl.constexpr, width: tl.constexpr):
    """`value` [rows, width], without what is past the head's size or the rows that there are."""
    row = tl.arange(0, rows)[:, None]
    channel = tl.arange(0, width)[None, :]
    at = x + tl.cast(first, tl.int64) * stride + row * stride + channel
    inside = row < left
    if size != width:
        inside = inside & (channel < size)
    tl.store(at, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def tiles(
    x, first, stride, left, cos, sin, position,
    size: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, pairs: tl.constexpr, cut: tl.constexpr,
):  # fmt: skip
    """Both tiles of the rows from `first`, the first of them at `position` of its sequence."""
    if pairs == "none":
        whole = rows_of(x, first, stride, left, size, rows, width, cut)
        return whole, whole
    else:
        c = rows_of(cos, position, size // 2, left, size // 2, rows, width, cut)
        s = rows_of(sin, position, size // 2, left, size // 2, rows, width, cut)
        if pairs == "neighbours":
            both = rows_of(x, first, stride, left, size, rows, 2 * width, cut)
            one, other = tl.split(tl.reshape(both, (rows, width, 2)))
        else:
            one = rows_of(x, first, stride, left, size // 2, rows, width, cut)
            other = rows_of(x + size // 2, first, stride, left, size // 2, rows, width, cut)
        a, b = one.to(tl.float32), other.to(tl.float32)
        return (a * c - b * s).to(one.dtype), (a * s + b * c).to(one.dtype)


@triton.jit
def store_gradient(
    x, one, other, first, stride, left, cos, sin, position,
    size: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, pairs: tl.constexpr,
):  # fmt: skip
    """Rotates the float32 gradients of `tiles` by the negative angles and stores them."""
    if pairs == "none":
        store_rows(x, one, first, stride, left, size, rows, width)
    else:
        c = rows_of(cos, position, size // 2, left, size // 2, rows, width, True)
        s = rows_of(sin, position, size // 2, left, size // 2, rows, width, True)
        a, b = one * c + other * s, other * c - one * s
        if pairs == "neighbours":
            store_rows(x, tl.reshape(tl.join(a, b), (rows, 2 * width)), first, stride, left, size, rows, 2 * width)
        else:
            store_rows(x, a, first, stride, left, size // 2, rows, width)
            store_rows(x + size // 2, b, first, stride, left, size // 2, rows, width)


@triton.jit
def scores(q1, q2, k1, k2, pairs: tl.constexpr):
    """q k^T of tiles, float32 [rows of q, rows of k]."""
    product = tl.dot(q1, tl.trans(k1), input_precision="ieee")
    if pairs != "none":
        product = tl.dot(q2, tl.trans(k2), product, input_precision="ieee")
    return product


@triton.jit
def whole_blocks(position, keys: tl.constexpr, pairs: tl.constexpr):
    """The number of keys, in whole blocks, that every query from `position` on attends to, so that no mask is needed.

    With rotary positions all blocks are masked: the rotation takes the registers of a second loop.
    """
    if pairs == "none":
        return (position + 1) // keys * keys
    else:
        return 0


def shape(head_size: int, rope: tuple[DeviceArray, DeviceArray, bool] | None) -> dict[str, Any]:
    """Constants of the kernels for reading a head; tl.dot needs a depth of at least 16."""
    if rope is None:
        pairs, half = "none", head_size
    else:
        pairs, half = "neighbours" if rope[2] else "halves", head_size // 2
    return {
        "size": head_size,
        "width": max(16, power_of_2(half)),
        "wide": max(16, power_of_2(head_size)),
        "pairs": pairs,
    }
