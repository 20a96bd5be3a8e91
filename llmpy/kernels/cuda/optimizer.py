"""AdamW (Loshchilov, Hutter 2017) over flat buffers, and the norm that gradient clipping needs; and the weights that
are kept in bfloat16 too. All run at the speed of memory, and none but `global_norm` waits for the device."""

from __future__ import annotations

import math

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.dropout import signed
from llmpy.kernels.cuda.gemm.packed_weight import Weight
from llmpy.kernels.cuda.primitives.reduce import PROGRAMS, sum_parts
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch

BLOCK = 2**16 if INTERPRETED else 1024


def adamw(
    p: DeviceArray,
    g: DeviceArray,
    m: DeviceArray,
    v: DeviceArray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float | DeviceArray,
    weight: Weight | None = None,
    rounding: int = 0,
) -> None:
    """p, g, m, v [n]: one step; `step` counts from 1; `grad_scale` multiplies g (clipping). m, v and p are updated.

    With a `weight` they are [OC, C], and it becomes the new p as `pack_weight` makes it. `grad_scale` may lie on the
    device, float32 [1], where `clip_scale` leaves it.
    """
    copy, on_device = p if weight is None else weight.numbers, isinstance(grad_scale, DeviceArray)
    rate, v_scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    numbers = rate, 1 - beta1, 1 - beta2, v_scale, eps, lr * weight_decay, grad_scale
    options = {"scale_on_device": on_device, "copied": weight is not None, "at_random": rounding != 0, "block": BLOCK}
    launch(_adamw, (cdiv(p.size, BLOCK),), p, g, m, v, copy, p.size, *numbers, signed(rounding), **options)


def pack_weight(weight: Weight, w: DeviceArray, rounding: int = 0) -> None:
    """w, float32 [OC, C] -> the weight: the nearest bfloat16 numbers, or where `rounding` is not 0, above or below at
    random with that seed (32 bits), so that the mean is w."""
    options = {"at_random": rounding != 0, "block": BLOCK}
    launch(_pack_weight, (cdiv(w.size, BLOCK),), weight.numbers, w, w.size, signed(rounding), **options)


def global_norm(g: DeviceArray) -> float:
    """g [n] -> its L2 norm, a Python float; parts of fixed size are summed in order, in float64."""
    return math.sqrt(np.sum(sum_parts(g, squares=True).numpy()))


def clip_scale(scale: DeviceArray, norm: DeviceArray, g: DeviceArray, largest: float) -> None:
    """norm [1] = the L2 norm of g [n], and scale [1] = what to multiply g with so that it is at most `largest` (0: no
    limit), both on the device: the optimizer's step can follow without waiting for them."""
    parts = sum_parts(g, squares=True)
    launch(_finish_norm, (1,), norm, scale, parts, len(parts), largest, block=PROGRAMS)


@triton.jit
def round_at_random(value, index, seed):
    """float32 -> a bfloat16 above or below it, so that the mean over many indices and seeds is the value.

    16 random bits are added below the last that is kept. They are xxHash32's last rounds (Collet 2014) of the index:
    the bits that the CPU makes. NaN stays NaN.
    """
    bits = value.to(tl.uint32, bitcast=True)
    x = index.to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 15)) * 0x85EBCA77
    x = (x ^ (x >> 13)) * 0xC2B2AE3D
    x = x ^ (x >> 16)
    kept = tl.where(value != value, bits | 0x400000, bits + (x & 0xFFFF))
    return (kept >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _store_weight(weight, value, at, inside, seed, at_random: tl.constexpr):
    rounded = round_at_random(value, at, seed) if at_random else value.to(tl.bfloat16)
    tl.store(weight + at, rounded, mask=inside)


@triton.jit(do_not_specialize=["seed"])
def _adamw(
    p, g, m, v, weight, n, rate, one_minus_beta1, one_minus_beta2, v_scale, eps, decay, grad_scale, seed,
    scale_on_device: tl.constexpr, copied: tl.constexpr, at_random: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """rate = lr / (1 - beta1^step) and v_scale = 1 / sqrt(1 - beta2^step) carry the corrections of the two biases."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < n
    scale = tl.load(grad_scale) if scale_on_device else grad_scale
    value, grad = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0) * scale
    first, second = tl.load(m + at, mask=inside, other=0.0), tl.load(v + at, mask=inside, other=0.0)
    first += one_minus_beta1 * (grad - first)
    second += one_minus_beta2 * (grad * grad - second)
    value -= rate * first / (tl.sqrt_rn(second) * v_scale + eps) + decay * value
    tl.store(m + at, first, mask=inside)
    tl.store(v + at, second, mask=inside)
    tl.store(p + at, value, mask=inside)
    if copied:
        _store_weight(weight, value, at, inside, seed, at_random)


@triton.jit(do_not_specialize=["seed"])
def _pack_weight(weight, w, n, seed, at_random: tl.constexpr, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < n
    _store_weight(weight, tl.load(w + at, mask=inside, other=0.0), at, inside, seed, at_random)


@triton.jit
def _finish_norm(norm, scale, parts, count, largest, block: tl.constexpr):
    at = tl.arange(0, block)
    length = tl.sqrt(tl.sum(tl.load(parts + at, mask=at < count, other=0.0), 0))
    tl.store(norm, length.to(norm.dtype.element_ty))
    clipped = (largest > 0) & (length > largest)
    tl.store(scale, tl.where(clipped, largest / length, 1.0).to(scale.dtype.element_ty))
