"""Copies on the device between parts of arrays that do not lie in one piece."""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.runtime.array import DeviceArray, empty
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch

BLOCK = 2**16 if INTERPRETED else 1024


def copy(to: DeviceArray, source: DeviceArray) -> None:
    """source -> to, of the same shape of up to four axes and 2^31 numbers; they may overlap, and be of different
    floats."""
    assert to.shape == source.shape, f"{source.shape} cannot be copied to {to.shape}"
    assert to.size < 2**31
    if to.size == 0:
        return
    if _overlap(to, source):
        held = empty(*source.shape, dtype=source.dtype)
        copy(held, source)
        source = held
    missing = (1,) * (4 - to.ndim)
    shape, steps, from_steps = ((*missing, *numbers) for numbers in (to.shape, to.strides, source.strides))
    launch(_copy, (cdiv(to.size, BLOCK),), to, source, to.size, *shape[1:], *steps, *from_steps, block=BLOCK)


def _overlap(a: DeviceArray, b: DeviceArray) -> bool:
    first, second = sorted((x.address, x.address + _extent(x)) for x in (a, b))
    return second[0] < first[1]


def _extent(array: DeviceArray) -> int:
    """Bytes from the first number of an array to behind its last."""
    steps = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    return (steps + 1) * array.dtype.itemsize


@triton.jit
def _copy(
    to, source, size, n1, n2, n3, to0, to1, to2, to3, from0, from1, from2, from3, block: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    i3, rest = at % n3, at // n3
    i2, rest = rest % n2, rest // n2
    i1, i0 = (rest % n1).to(tl.int64), (rest // n1).to(tl.int64)
    value = tl.load(source + i0 * from0 + i1 * from1 + i2 * from2 + i3 * from3, mask=inside)
    tl.store(to + i0 * to0 + i1 * to1 + i2 * to2 + i3 * to3, value.to(to.dtype.element_ty), mask=inside)
