"""Memory that operations need while they run, taken at the first call that needs it and kept."""

from __future__ import annotations

import numpy as np

from llmpy.kernels.cuda.array import DeviceArray, empty

_taken: dict[str, DeviceArray] = {}


def scratch(name: str, size: int) -> DeviceArray:
    """`size` bytes or more, of any values; every call with the name gives the same memory, unless it has to grow."""
    if name not in _taken or _taken[name].nbytes < size:
        _taken[name] = empty(size, dtype=np.uint8)
    return _taken[name]
