"""The memory of the host as a device for Triton's interpreter. All work is done at once."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from llmpy.kernels.cuda.runtime.arena import ALIGNMENT, aligned
from llmpy.kernels.cuda.runtime.transfers import check_batch, check_delivery
from llmpy.utils import system_memory


class Host:
    """The host's memory as a device."""

    name = "Triton's interpreter"
    capability = (8, 0)  # of the oldest GPUs that have bfloat16
    stream = 0

    def memory(self) -> tuple[int, int]:
        whole = system_memory.physical_memory() or 0
        free = system_memory.available_memory()
        return whole if free is None else free, whole

    def take(self, size: int) -> tuple[int, Any]:
        memory = np.zeros(size + ALIGNMENT, np.uint8)
        start = memory.ctypes.data
        return start + -start % ALIGNMENT, memory

    def copy_in(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def copy_out(self, array: np.ndarray, address: int) -> None:
        held = np.empty(array.shape, array.dtype)
        ctypes.memmove(held.ctypes.data, address, held.nbytes)
        array[...] = held

    def copy(self, to: int, address: int, size: int) -> None:
        ctypes.memmove(to, address, size)

    def clear(self, address: int, size: int) -> None:
        ctypes.memset(address, 0, size)

    def synchronize(self) -> None:
        """Does nothing: all work is done at once."""

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        return function

    def read_later(self, address: int, dtype: Any = np.float32) -> Read:
        number = np.empty(1, dtype)
        self.copy_out(number, address)
        return Read(float(number[0]))

    def copies_ahead(self, size: int) -> PrefetchQueue:
        return PrefetchQueue(size)

    def mark(self) -> float:
        return time.perf_counter()


class Read:
    """A value that is available already."""

    arrived = True

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value


class PrefetchQueue:
    """A prefetch queue that keeps copies of arrays until they are delivered."""

    def __init__(self, size: int) -> None:
        self._size = aligned(size)
        self._waiting: deque[list[np.ndarray]] = deque()

    def put(self, *arrays: np.ndarray) -> None:
        check_batch(arrays, self._size, len(self._waiting))
        self._waiting.append([np.array(array, order="C") for array in arrays])

    def deliver(self, *addresses: int) -> None:
        check_delivery(addresses, [len(batch) for batch in self._waiting])
        for address, array in zip(addresses, self._waiting.popleft(), strict=True):
            ctypes.memmove(address, array.ctypes.data, array.nbytes)
