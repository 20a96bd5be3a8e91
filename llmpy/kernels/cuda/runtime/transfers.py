"""Transfers between the host and the GPU through pinned memory, which the GPU reads and writes by itself."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpy.kernels.cuda.runtime.arena import aligned

if TYPE_CHECKING:
    from llmpy.kernels.cuda.runtime.gpu import Gpu

HALF = 8 * 2**20  # bytes of each of the two buffers that arrays of any size pass through
SLOT, SLOTS = 8, 64  # bytes of a pending value, and how many are allocated at a time
BATCHES = 2  # that may be pending in a prefetch queue


class Pinned:
    """`size` bytes of pinned host memory: `address` for the GPU's copies, `bytes` for NumPy."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._buffer = gpu.core.LegacyPinnedMemoryResource().allocate(size)
        self.address = int(self._buffer.handle)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))


class Staging:
    """Copies arrays of any size through two buffers: the GPU copies one while the host fills or empties the other."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._halves = [Pinned(gpu, HALF) for _ in range(2)]
        self._copied = [gpu.event() for _ in range(2)]  # recorded when the contents of a half have been copied
        self._turn = 0

    def copy_in(self, address: int, array: np.ndarray) -> None:
        """Copies an array of the host to the GPU; returns when the whole array is in the buffers."""
        data = array.reshape(-1).view(np.uint8)
        for start, size in _chunks(data.size):
            half = self._next()
            self._copied[half].sync()
            self._halves[half].bytes[:size] = data[start : start + size]
            self._gpu.copy(address + start, self._halves[half].address, size)
            self._gpu.record(self._copied[half])

    def copy_out(self, array: np.ndarray, address: int) -> None:
        """Copies GPU memory to an array of the host: the GPU fills one buffer while the host empties the other."""
        data = np.empty(array.nbytes, np.uint8)
        coming: deque[tuple[int, int, int]] = deque()
        for start, size in _chunks(data.size):
            half = self._next()
            self._gpu.copy(self._halves[half].address, address + start, size)
            self._gpu.record(self._copied[half])
            coming.append((half, start, size))
            if len(coming) == 2:
                self._empty(data, *coming.popleft())
        while coming:
            self._empty(data, *coming.popleft())
        array[...] = data.view(array.dtype).reshape(array.shape)

    def _empty(self, data: np.ndarray, half: int, start: int, size: int) -> None:
        self._copied[half].sync()
        data[start : start + size] = self._halves[half].bytes[:size]

    def _next(self) -> int:
        self._turn ^= 1
        return self._turn


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, HALF):
        yield start, min(HALF, size - start)


class Readings:
    """Slots for pending values, each with an event of its own; a slot is reused after its value was read."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._free: list[tuple[Pinned, int, Any]] = []

    def begin(self, address: int, dtype: Any) -> Reading:
        if not self._free:
            memory = Pinned(self._gpu, SLOT * SLOTS)
            self._free += [(memory, SLOT * i, self._gpu.event()) for i in range(SLOTS)]
        memory, offset, event = slot = self._free.pop()
        self._gpu.copy(memory.address + offset, address, np.dtype(dtype).itemsize)
        self._gpu.record(event)
        return Reading(self._free, slot, np.dtype(dtype))


class Reading:
    """A pending value: float() waits until the GPU has computed and copied it."""

    def __init__(self, free: list[Any], slot: tuple[Pinned, int, Any], dtype: np.dtype) -> None:
        self._free, self._slot, self._dtype = free, slot, dtype
        self._value: float | None = None

    @property
    def arrived(self) -> bool:
        return self._value is not None or self._slot[2].is_done

    def __float__(self) -> float:
        if self._value is None:
            memory, offset, event = self._slot
            event.sync()
            self._value = float(memory.bytes[offset : offset + self._dtype.itemsize].view(self._dtype)[0])
            self._free.append(self._slot)
        return self._value

    def __del__(self) -> None:
        # Copies run in order: a pending copy to this slot ends before the copy of the slot's next value begins.
        if self._value is None:
            self._free.append(self._slot)


class PrefetchQueue:
    """A prefetch queue on a stream of its own: batches go to pinned memory, then to staging memory on the GPU.

    `deliver` copies a batch to its place. Both kinds of staging memory exist twice: one batch is copied while the batch
    before it waits for delivery.
    """

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu, self._size = gpu, aligned(size)
        self._pinned = [Pinned(gpu, self._size) for _ in range(BATCHES)]
        self._staged = [gpu.take(self._size) for _ in range(BATCHES)]
        self._arrived = [gpu.event() for _ in range(BATCHES)]  # on the GPU
        self._delivered = [gpu.event() for _ in range(BATCHES)]  # recorded when a staging place may be reused
        for event in self._delivered:
            gpu.record(event)  # memory is usable once the stream that allocated it gets there
        self._waiting: deque[tuple[int, list[int]]] = deque()  # of each batch: staging place, array sizes
        self._turn = 0

    def put(self, *arrays: np.ndarray) -> None:
        check_batch(arrays, self._size, len(self._waiting))
        place, self._turn = self._turn, (self._turn + 1) % BATCHES
        pinned, gpu = self._pinned[place], self._gpu
        self._arrived[place].sync()  # until the pinned memory has been read
        end = 0
        for array in arrays:
            pinned.bytes[end : end + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            end += aligned(array.nbytes)
        gpu.ahead.wait(self._delivered[place])
        gpu.copy_on(gpu.ahead, self._staged[place][0], pinned.address, end)
        gpu.ahead.record(self._arrived[place])
        self._waiting.append((place, [array.nbytes for array in arrays]))

    def deliver(self, *addresses: int) -> None:
        check_delivery(addresses, [len(sizes) for _, sizes in self._waiting])
        place, sizes = self._waiting.popleft()
        self._gpu.wait(self._arrived[place])
        source = self._staged[place][0]
        for address, size in zip(addresses, sizes, strict=True):
            self._gpu.copy(address, source, size)
            source += aligned(size)
        self._gpu.record(self._delivered[place])


def check_batch(arrays: tuple[np.ndarray, ...], size: int, waiting: int) -> None:
    """Raises ValueError for arrays that a prefetch queue of `size` bytes with `waiting` batches does not take."""
    if waiting == BATCHES:
        raise ValueError(f"{BATCHES} batches wait already: deliver one before the next is put")
    if (needed := sum(aligned(array.nbytes) for array in arrays)) > size:
        raise ValueError(f"a batch of {needed} bytes where {size} were planned")


def check_delivery(addresses: tuple[int, ...], waiting: list[int]) -> None:
    """Raises ValueError if `addresses` do not fit the first batch; `waiting` has the number of arrays of each batch."""
    if not waiting:
        raise ValueError("no batch waits to be delivered")
    if len(addresses) != waiting[0]:
        raise ValueError(f"{len(addresses)} addresses for a batch of {waiting[0]} arrays")
