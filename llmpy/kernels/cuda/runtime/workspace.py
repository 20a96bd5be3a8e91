"""Scratch memory of the kernels on the device: allocated when first needed, and reused by later calls."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from llmpy.kernels.cuda.runtime.array import DeviceArray, empty

_memory: dict[str, DeviceArray] = {}
# Arrays that were too small are kept: a CUDA graph that was captured earlier continues to use them.
_outgrown: list[DeviceArray] = []


def scratch(name: str, *shape: int, dtype: Any = np.uint8) -> DeviceArray:
    """An array in the memory of this name, which grows where a call needs more; it holds anything.

    `scratch(name, bytes)` is memory alone. Calls that want the same name at the same time must follow one another on
    the stream.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    held = _memory.get(name)
    if held is None or held.nbytes < size:
        if held is not None:
            _outgrown.append(held)
        held = _memory[name] = empty(max(size, 1), dtype=np.uint8)
    return DeviceArray(held.address, shape, dtype, held.owner)


def scratch_bytes() -> int:
    """Bytes of scratch taken so far."""
    return sum(array.nbytes for array in (*_memory.values(), *_outgrown))
