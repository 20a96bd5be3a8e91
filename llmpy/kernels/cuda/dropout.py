"""Dropout (Srivastava et al. 2014) whose mask is a hash of index and key: nothing is stored, and the mask is the one
that every backend makes."""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch

BLOCK = 2**16 if INTERPRETED else 2048


def dropout(
    y: DeviceArray, x: DeviceArray, probability: float, key: int | DeviceArray, residual: DeviceArray | None = None
) -> None:
    """x, any shape -> y = x * mask / (1 - probability), plus `residual` if given; y may be x or residual.

    `key` is an int of 64 bits: another for every place where a model drops, and for every step. It may lie on the
    device, uint64 [1]: then a captured graph drops others whenever it has been changed.
    """
    held, bits = (key, 0) if isinstance(key, DeviceArray) else (x, key)
    numbers = signed(bits), signed(bits >> 32), signed(int(probability * 2**32)), 1 / (1 - probability), x.size
    options = {"on_device": held is key, "add": residual is not None, "block": BLOCK}
    launch(_dropout, (cdiv(x.size, BLOCK),), y, x, x if residual is None else residual, held, *numbers, **options)


@triton.jit
def _mix(h):
    """lowbias32 (Wellons 2018), of uint32."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


# Keys change from call to call, and none of them is worth a kernel of its own.
@triton.jit(do_not_specialize=["low", "high", "threshold"])
def _dropout(
    y, x, residual, key, low, high, threshold, scale, n,
    on_device: tl.constexpr, add: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < n
    if on_device:
        bits = tl.load(key).to(tl.uint64)
        low_key, high_key = bits.to(tl.uint32), (bits >> 32).to(tl.uint32)
    else:
        low_key, high_key = low.to(tl.uint32, bitcast=True), high.to(tl.uint32, bitcast=True)
    kept = _mix(_mix(at.to(tl.uint32) ^ low_key) ^ high_key) >= threshold.to(tl.uint32, bitcast=True)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    result = tl.where(kept, value * scale, 0.0)
    if add:
        result += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


def signed(bits: int) -> int:
    """The int32 that the lower 32 bits are: a number of one type, whatever it is."""
    return (bits & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
