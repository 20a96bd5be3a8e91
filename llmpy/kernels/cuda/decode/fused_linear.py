"""Matmuls of a decoding step (a small batch of sequences), fused with the norm before them and the operation after.

A program computes some outputs of 16 sequences over the whole depth: wide pipelined loads read the weights once, and
the tensor cores multiply, however small the batch is. So the bits of a sequence do not depend on the other sequences.

x is float32 and keeps that precision beside weights with fewer bits. x is split into the sum of two bfloat16 and
multiplied by exact bfloat16 or 8-bit elements, whose scales are applied afterwards. float32 weights take three tf32
matmuls (NVIDIA's 3xTF32).

A norm needs the mean and the sum of squares of whole rows, which no program has. The programs that write the residual
stream also write the sums of their own columns (`parts`); the next matmul combines them (Chan, Golub, LeVeque 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.decode.matrix import DeviceMatrix, numbers
from llmpy.kernels.cuda.gelu import gelu
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch, power_of_2
from llmpy.kernels.cuda.runtime.workspace import scratch
from llmpy.quant.types import BF16

SEQUENCES = 16  # of a program: the fewest rows that tensor cores multiply
LAYERNORM_EPS = 1e-5


@dataclass(frozen=True)
class Norm:
    """The norm of the residual stream before a product: LayerNorm with a `shift` [C], RMSNorm without.

    `parts` float32 as `parts_shape` says: of the columns of each part the sum, and the squares around its mean.
    """

    parts: DeviceArray
    gain: DeviceArray
    shift: DeviceArray | None
    eps: float

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.parts, self.gain, self.shift, self.eps


def configuration(
    outputs: int, narrow: bool, quantized: bool = False, interpreted: bool = INTERPRETED
) -> dict[str, int]:
    """Block sizes and warps of a matmul: few outputs need small blocks, so that the whole GPU has work.

    The kernel reads an 8-bit matrix one quantized block deep at a time. `narrow`: bfloat16 weights.
    """
    if interpreted:
        return {"bs": SEQUENCES, "bn": 64, "bk": 32 if quantized else 512}
    bn, warps = (8, 1) if outputs <= 1024 else (16, 2) if outputs <= 8192 else (32, 4)
    depth, stages = (128, 4) if narrow else (32, 6)
    return {"bs": SEQUENCES, "bn": bn, "bk": depth, "num_warps": warps, "num_stages": stages}


def part_of(channels: int, interpreted: bool = INTERPRETED) -> int:
    """Columns of a part of the residual stream."""
    return configuration(channels, False, interpreted=interpreted)["bn"]


def parts_shape(sequences: int, channels: int) -> tuple[int, int, int]:
    """The shape of the parts of the residual stream [S, C]: sums and squares of S rows, padded to a power of 2."""
    return sequences, 2, power_of_2(cdiv(channels, part_of(channels)))


def linear(
    y: DeviceArray,
    x: DeviceArray,
    w: DeviceMatrix,
    b: DeviceArray | None,
    norm: Norm,
    with_gelu: bool = False,
) -> None:
    """y [S, OC] = norm(x) [S, C] w^T + b of float32; its GELU `with_gelu`."""
    (S, C), OC = x.shape, w.shape[0]
    options = _options(w, OC)
    grid = cdiv(OC, options["bn"]), cdiv(S, SEQUENCES)
    launch(
        _linear, grid, y, x, *w.layout, b, *norm.arguments, S, C, OC, with_gelu=with_gelu, **_norm_options(norm, C),
        **options,
    )  # fmt: skip


def add_linear(
    residual: DeviceArray, parts: DeviceArray, x: DeviceArray, w: DeviceMatrix, b: DeviceArray | None = None
) -> None:
    """residual [S, OC] += x [S, C] w^T + b, and the parts of the norm after it."""
    (S, C), OC = x.shape, w.shape[0]
    options = _options(w, OC)
    grid = cdiv(OC, options["bn"]), cdiv(S, SEQUENCES)
    launch(_add_linear, grid, residual, parts, x, *w.layout, b, S, C, OC, most_parts=parts.shape[2], **options)


def gated(y: DeviceArray, x: DeviceArray, w: DeviceMatrix, norm: Norm) -> None:
    """y [S, H] = silu(gate) * up; gate and up are the matmuls with the halves of w [2 H, C]."""
    (S, C), H = x.shape, w.shape[0] // 2
    options = _pairs(_options(w, 2 * H))
    grid = cdiv(2 * H, options["bn"]), cdiv(S, SEQUENCES)
    launch(_gated, grid, y, x, *w.layout, *norm.arguments, S, C, H, **_norm_options(norm, C), **options)


def heads(
    q: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    x: DeviceArray,
    w: DeviceMatrix,
    b: DeviceArray | None,
    norm: Norm,
    slots: DeviceArray,
    positions: DeviceArray,
    angles: tuple[DeviceArray, DeviceArray] | None = None,
    interleaved: bool = False,
) -> None:
    """q [S, NH * hs], and the keys and values [slots, T, NKV, hs] at slots and positions int32 [S], of x [S, C].

    w stacks the weights of q, k and v. With `angles`, cos and sin [T, hs/2], q and k are rotated to their positions.
    """
    (S, C), OC, (_, _, NKV, hs) = x.shape, w.shape[0], keys.shape
    assert keys.strides == values.strides
    assert keys.strides[3] == 1
    options = _pairs(_options(w, OC))
    grid = cdiv(OC, options["bn"]), cdiv(S, SEQUENCES)
    cos, sin = angles or (None, None)
    launch(
        _heads, grid, q, keys, values, x, *w.layout, b, *norm.arguments, cos, sin, slots, positions, S, C,
        q.shape[1], NKV * hs, hs, *keys.strides[:3], interleaved=interleaved, **_norm_options(norm, C), **options,
    )  # fmt: skip


def embed(
    x: DeviceArray,
    w: DeviceMatrix,
    wpe: DeviceArray | None,
    tokens: DeviceArray,
    positions: DeviceArray,
    parts: DeviceArray | None = None,
) -> None:
    """x [S, C] = the rows of w of tokens int32 [S], plus those of wpe [T, C] of positions int32 [S]; and the parts of
    the norm after it."""
    S, C = x.shape
    if parts is None:
        options = {"block": min(1024, power_of_2(C)), "most_parts": 1, "num_warps": 4}
    else:
        options = {"block": part_of(C), "most_parts": parts.shape[2], "num_warps": 1}
    grid = cdiv(C, options["block"]), S
    launch(_embed, grid, x, parts, tokens, positions, *w.layout, wpe, C, **options)


def embed_rows(x: DeviceArray, weights: Any, tokens: np.ndarray, positions: np.ndarray) -> None:
    """x [T, C] = the embeddings of tokens int32 [T] of the host at positions int32 [T], by the weights of
    `upload_weights`."""
    T = len(tokens)
    placed = scratch("tokens", 2 * T, dtype=np.int32)
    placed[...] = np.concatenate([tokens, positions])
    embed(x, weights.embedding, getattr(weights, "wpe", None), placed[:T], placed[T:])


def _options(w: DeviceMatrix, outputs: int) -> dict[str, int]:
    return configuration(outputs, w.kind == BF16, w.scales is not None)


def _pairs(options: dict[str, int]) -> dict[str, int]:
    """Block sizes for outputs that are computed in pairs, which takes more registers at the end."""
    return options | {"bn": max(options["bn"], 16), "num_warps": 4}


def _norm_options(norm: Norm, channels: int) -> dict[str, int]:
    return {"part": part_of(channels), "most_parts": norm.parts.shape[2]}


# ---- on the device -------------------------------------------------------------------------------------------------


@triton.jit
def _moments(parts, row, there, C, eps, centered: tl.constexpr, part: tl.constexpr, most: tl.constexpr):
    """The mean (0 where not `centered`) and 1 / deviation of whole rows, [bs] each, of the parts of them."""
    p = tl.arange(0, most)
    at = parts + row[:, None] * (2 * most) + p[None, :]
    sums = tl.load(at, mask=there[:, None], other=0.0)
    squares = tl.load(at + most, mask=there[:, None], other=0.0)
    size = tl.maximum(tl.minimum(C - p * part, part), 1).to(tl.float32)[None, :]
    if centered:
        mean = tl.sum(sums, 1) / C
        away = sums / size - mean[:, None]
    else:
        mean = tl.zeros_like(tl.sum(sums, 1))
        away = sums / size
    variance = tl.sum(tl.where((p * part < C)[None, :], squares + size * away * away, 0.0), 1) / C
    return mean, 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def _keep_parts(parts, value, row, there, n, C, most: tl.constexpr):
    """The sum of what a program made of each row, value [bs, bn], and the squares around its mean."""
    valid = (n < C)[None, :]
    value = tl.where(valid, value, 0.0)
    size = tl.sum((n < C).to(tl.float32), 0)
    total = tl.sum(value, 1)
    away = tl.where(valid, value - (total / size)[:, None], 0.0)
    at = parts + row * (2 * most) + tl.program_id(0)
    tl.store(at, total, mask=there)
    tl.store(at + most, tl.sum(away * away, 1), mask=there)


@triton.jit
def _products(
    x, w, scales, stride, scale_stride, out, row, there, C, gain, shift, mean, scale,
    bs: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
):  # fmt: skip
    """Rows `row` [bs] of x, normed where there is a gain, times rows `out` [bn] of w -> float32 [bs, bn]."""
    total = tl.zeros((bs, bn), tl.float32)
    out = out.to(tl.int64)[None, :]
    for start in range(0, C, bk):
        k = start + tl.arange(0, bk)
        inside = k < C
        value = tl.load(x + row[:, None] * C + k[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        if gain is not None:
            factor = tl.load(gain + k, mask=inside, other=0.0)
            value = (value - mean[:, None]) * scale[:, None] * factor[None, :]
        if shift is not None:
            value += tl.load(shift + k, mask=inside, other=0.0)[None, :]
        if scales is not None:
            high, low = _halves(value)
            block = start // 32
            tile = tl.load(w + tl.cast(block, tl.int64) * stride + out * 32 + tl.arange(0, 32)[:, None]).to(tl.bfloat16)
            product = tl.dot(low, tile, tl.dot(high, tile))
            total += product * tl.load(scales + block * scale_stride + out)
        else:
            tile = tl.load(w + out * stride + k[:, None], mask=inside[:, None], other=0.0)
            if w.dtype.element_ty == tl.bfloat16:
                high, low = _halves(value)
                total = tl.dot(high, tile, total)
                total = tl.dot(low, tile, total)
            else:
                total = tl.dot(value, tile.to(tl.float32), total, input_precision="tf32x3")
    return total


@triton.jit
def _halves(value):
    """float32 as the sum of two bfloat16, to 16 bits."""
    high = value.to(tl.bfloat16)
    return high, (value - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _rows(sequences, bs: tl.constexpr):
    """The rows of a program, and which of them are there."""
    row = tl.program_id(1) * bs + tl.arange(0, bs)
    return row, row < sequences


@triton.jit(do_not_specialize=["S"])
def _linear(
    y, x, w, scales, stride, scale_stride, b, parts, gain, shift, eps, S, C, OC,
    with_gelu: tl.constexpr, part: tl.constexpr, most_parts: tl.constexpr,
    bs: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
):  # fmt: skip
    row, there = _rows(S, bs)
    n = tl.program_id(0) * bn + tl.arange(0, bn)
    mean, scale = _moments(parts, row, there, C, eps, shift is not None, part, most_parts)
    last = tl.minimum(n, OC - 1)
    total = _products(x, w, scales, stride, scale_stride, last, row, there, C, gain, shift, mean, scale, bs, bn, bk)
    if b is not None:
        total += tl.load(b + last)[None, :]
    if with_gelu:
        total = gelu(total)
    tl.store(y + row.to(tl.int64)[:, None] * OC + n[None, :], total, mask=there[:, None] & (n < OC)[None, :])


@triton.jit(do_not_specialize=["S"])
def _add_linear(
    residual, parts, x, w, scales, stride, scale_stride, b, S, C, OC,
    most_parts: tl.constexpr, bs: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
):  # fmt: skip
    row, there = _rows(S, bs)
    n = tl.program_id(0) * bn + tl.arange(0, bn)
    last = tl.minimum(n, OC - 1)
    total = _products(x, w, scales, stride, scale_stride, last, row, there, C, None, None, 0.0, 0.0, bs, bn, bk)
    if b is not None:
        total += tl.load(b + last)[None, :]
    at, inside = residual + row[:, None] * OC + n[None, :], there[:, None] & (n < OC)[None, :]
    total += tl.load(at, mask=inside, other=0.0)
    tl.store(at, total, mask=inside)
    _keep_parts(parts, total, row, there, n, OC, most_parts)


@triton.jit(do_not_specialize=["S"])
def _gated(
    y, x, w, scales, stride, scale_stride, parts, gain, shift, eps, S, C, H,
    part: tl.constexpr, most_parts: tl.constexpr, bs: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
):  # fmt: skip
    row, there = _rows(S, bs)
    mean, scale = _moments(parts, row, there, C, eps, shift is not None, part, most_parts)
    side_by_side = tl.arange(0, bn)  # of gate, of up, of gate, ...
    out = tl.minimum(tl.program_id(0) * (bn // 2) + side_by_side // 2, H - 1) + side_by_side % 2 * H
    total = _products(x, w, scales, stride, scale_stride, out, row, there, C, gain, shift, mean, scale, bs, bn, bk)
    gate, up = tl.split(tl.reshape(total, (bs, bn // 2, 2)))
    e = tl.exp(-tl.abs(gate))
    silu = gate * tl.where(gate < 0, e, 1.0) / (1.0 + e)
    n = tl.program_id(0) * (bn // 2) + tl.arange(0, bn // 2)
    tl.store(y + row[:, None] * H + n[None, :], silu * up, mask=there[:, None] & (n < H)[None, :])


@triton.jit(do_not_specialize=["S"])
def _heads(
    q, keys, values, x, w, scales, stride, scale_stride, b, parts, gain, shift, eps, cos, sin, slots, positions,
    S, C, q_width, kv_width, hs, slot_stride, time_stride, head_stride,
    interleaved: tl.constexpr, part: tl.constexpr, most_parts: tl.constexpr,
    bs: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
):  # fmt: skip
    row, there = _rows(S, bs)
    mean, scale = _moments(parts, row, there, C, eps, shift is not None, part, most_parts)
    OC = q_width + 2 * kv_width
    position = tl.load(positions + row, mask=there, other=0)
    n = tl.program_id(0) * bn + tl.arange(0, bn)
    if cos is not None:
        half, pair = hs // 2, n // 2
        if not interleaved:  # the two of a pair are half a head apart in memory, and neighbours here
            n = pair // half * hs + pair % half + n % 2 * half
    last = tl.minimum(n, OC - 1)
    total = _products(x, w, scales, stride, scale_stride, last, row, there, C, gain, shift, mean, scale, bs, bn, bk)
    if b is not None:
        total += tl.load(b + last)[None, :]
    if cos is not None:
        pair = tl.program_id(0) * (bn // 2) + tl.arange(0, bn // 2)
        turned = there[:, None] & (2 * pair < q_width + kv_width)[None, :]
        angle = position[:, None] * half + (pair % half)[None, :]
        c, s = tl.load(cos + angle, mask=turned, other=1.0), tl.load(sin + angle, mask=turned, other=0.0)
        first, second = tl.split(tl.reshape(total, (bs, bn // 2, 2)))
        total = tl.reshape(tl.join(first * c - second * s, first * s + second * c), (bs, bn))
    tl.store(q + row[:, None] * q_width + n[None, :], total, mask=there[:, None] & (n < q_width)[None, :])
    slot = tl.load(slots + row, mask=there, other=0).to(tl.int64)
    place = (slot * slot_stride + position.to(tl.int64) * time_stride)[:, None]
    k, v = n - q_width, n - q_width - kv_width
    at, inside = place + (k // hs * head_stride + k % hs)[None, :], there[:, None] & ((k >= 0) & (v < 0))[None, :]
    tl.store(keys + at, total.to(keys.dtype.element_ty), mask=inside)
    at, inside = place + (v // hs * head_stride + v % hs)[None, :], there[:, None] & ((v >= 0) & (n < OC))[None, :]
    tl.store(values + at, total.to(values.dtype.element_ty), mask=inside)


@triton.jit
def _embed(
    x, parts, tokens, positions, w, scales, stride, scale_stride, wpe, C, block: tl.constexpr, most_parts: tl.constexpr
):
    row = tl.program_id(1) + tl.arange(0, 1)
    n = tl.program_id(0) * block + tl.arange(0, block)
    inside = (n < C)[None, :]
    token = tl.load(tokens + row).to(tl.int64)[:, None]
    value = numbers(w, scales, token, n[None, :], stride, scale_stride, inside)
    if wpe is not None:
        position = tl.load(positions + row)[:, None]
        value += tl.load(wpe + position * C + n[None, :], mask=inside, other=0.0)
    tl.store(x + row[:, None] * C + n[None, :], value.to(x.dtype.element_ty), mask=inside)
    if parts is not None:
        _keep_parts(parts, value, row, row >= 0, n, C, most_parts)
