"""What kernels run on: one GPU, or, with TRITON_INTERPRET=1, this machine's memory under Triton's interpreter."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np

from llmpy.memory import available_memory

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Device(Protocol):
    """Memory and order of what runs. Copies and kernels follow one another on one stream."""

    def memory(self) -> tuple[int, int]:
        """Bytes that are free now, and all that there are."""

    def take(self, size: int) -> tuple[int, Any]:
        """`size` bytes -> their address, aligned to 256, and the object that keeps them."""

    def copy_in(self, address: int, array: np.ndarray) -> None:
        """A contiguous array of the host, which may change as soon as this returns."""

    def copy_out(self, array: np.ndarray, address: int) -> None:
        """Into an array of the host, which holds the numbers when this returns."""

    def copy(self, to: int, address: int, size: int) -> None: ...

    def clear(self, address: int, size: int) -> None: ...

    def synchronize(self) -> None:
        """Returns when all that was asked for is done."""

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        """The function made one call of the device.

        The first call runs it as it is: its kernels are compiled, its scratch is taken. The second notes down what it
        asks of the device, and from then on that is repeated, and the function itself no longer called. It must always
        ask for the same, of the same addresses, and take or read nothing.
        """


class Interpreter:
    """The host's memory as a device: what the interpreter of Triton reads and writes."""

    def take(self, size: int) -> tuple[int, Any]:
        memory = np.zeros(size + 256, np.uint8)
        start = memory.ctypes.data
        return start + -start % 256, memory

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
        """All is done at once here."""

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        return function

    def memory(self) -> tuple[int, int]:
        free = available_memory() or 2**62
        return free, free


@cache
def current() -> Device:
    """The device of this process."""
    if INTERPRETED:
        return Interpreter()
    from llmpy.kernels.cuda.gpu import Gpu

    return Gpu()
