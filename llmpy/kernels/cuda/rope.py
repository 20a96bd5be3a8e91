"""Rotary positions (Su et al. 2021), in place on queries and keys in the qkv buffer."""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.primitives.row_blocks import row_tile
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.launch import cdiv, launch


def rope_forward(
    x: DeviceArray,
    cos: DeviceArray,
    sin: DeviceArray,
    interleaved: bool = True,
    positions: DeviceArray | None = None,
) -> None:
    """x [B, T, heads, hs], rotated in place; cos, sin [maxT, hs/2] of the angles of every position.

    positions int32 [B] is where x[:, 0] lies in each sequence; None: at 0.
    """
    _launch(x, cos, sin, interleaved, positions, 1.0)


def rope_backward(
    dx: DeviceArray,
    cos: DeviceArray,
    sin: DeviceArray,
    interleaved: bool = True,
    positions: DeviceArray | None = None,
) -> None:
    """Rotates dy to dx in place by the negative angles: the transpose of a rotation is its inverse."""
    _launch(dx, cos, sin, interleaved, positions, -1.0)


@triton.jit
def _turn(
    x, cos, sin, positions, N, T, heads, stride_b, stride_t, stride_h, direction,
    half: tl.constexpr, interleaved: tl.constexpr, placed: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """A row is a head of a token; N = B * T * heads. Columns are pairs."""
    row, pair = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, columns)
    token = row // heads
    b, t = token // T, token % T
    start = x + b.to(tl.int64) * stride_b + t.to(tl.int64) * stride_t + (row % heads) * stride_h
    position = t + tl.load(positions + b, mask=row < N, other=0) if placed else t
    inside = (row < N)[:, None] & (pair < half)[None, :]
    angle = position[:, None] * half + pair[None, :]
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0) * direction
    if interleaved:  # whole heads are read, which lie in one piece
        column = tl.arange(0, 2 * columns)
        at, in_head = start[:, None] + column[None, :], (row < N)[:, None] & (column < 2 * half)[None, :]
        first, second = tl.split(tl.reshape(tl.load(at, mask=in_head, other=0.0).to(tl.float32), (rows, columns, 2)))
        turned = tl.reshape(tl.join(first * c - second * s, first * s + second * c), (rows, 2 * columns))
        tl.store(at, turned.to(x.dtype.element_ty), mask=in_head)
    else:
        at = start[:, None] + pair[None, :]
        first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
        tl.store(at, (first * c - second * s).to(x.dtype.element_ty), mask=inside)
        tl.store(at + half, (first * s + second * c).to(x.dtype.element_ty), mask=inside)


def _launch(x, cos, sin, interleaved, positions, direction):
    B, T, heads, hs = x.shape
    N, block = B * T * heads, row_tile(hs // 2)
    placed = positions is not None
    angles = cos, sin, positions if placed else cos
    options = {"half": hs // 2, "interleaved": interleaved, "placed": placed, **block}
    launch(_turn, (cdiv(N, block["rows"]),), x, *angles, N, T, heads, *x.strides[:3], direction, **options)
