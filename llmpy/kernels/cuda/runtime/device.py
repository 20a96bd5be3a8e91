"""The device that kernels run on: one GPU, or, with TRITON_INTERPRET=1, host memory under Triton's interpreter.

A training step uses, besides memory: `captured`, which launches all its kernels as one CUDA graph; `read_later`, which
copies a value back while the device computes; `copies_ahead`, the prefetch queue of the next batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from llmpy.errors import UserError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ORDINAL = "LLMPY_CUDA_DEVICE"  # the variable that says which GPU, where --device does not


class Pending(Protocol):
    """A value that is being copied from the device."""

    @property
    def arrived(self) -> bool: ...

    def __float__(self) -> float:
        """The number, when all that was asked for before it is done."""


class CopiesAhead(Protocol):
    """Prefetch queue of batches to the device, first in, first out, at most two batches at a time."""

    def put(self, *arrays: np.ndarray) -> None:
        """Starts copying a batch while the device computes; the host arrays may change as soon as this returns.

        Raises ValueError if two batches wait already, or if the arrays take more bytes than planned.
        """

    def deliver(self, *addresses: int) -> None:
        """The oldest lot, to an address for each of its arrays, before what is asked for next and after what was.

        Raises ValueError where none waits.
        """


class Mark(Protocol):
    """A moment in the order of what runs."""

    def __sub__(self, earlier: Any) -> float:
        """Seconds between two moments, when the device has come to both."""


class Device(Protocol):
    """Memory and order of what runs. Copies and kernels follow one another on one stream."""

    @property
    def name(self) -> str: ...

    @property
    def capability(self) -> tuple[int, int]:
        """NVIDIA's number of the architecture: (9, 0) is Hopper."""

    @property
    def stream(self) -> int:
        """The handle of the stream, for libraries that are called beside the kernels; 0 under the interpreter."""

    def memory(self) -> tuple[int, int]:
        """Bytes that are free now, and all that there are."""

    def take(self, size: int) -> tuple[int, Any]:
        """`size` bytes -> their address, aligned to 256, and the object that keeps them. Raises UserError where there
        are not as many."""

    def copy_in(self, address: int, array: np.ndarray) -> None:
        """A contiguous array of the host, which may change as soon as this returns."""

    def copy_out(self, array: np.ndarray, address: int) -> None:
        """Copies an array to the host; the copy is complete when this returns."""

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

    def read_later(self, address: int, dtype: Any = np.float32) -> Pending:
        """One number, as it is after all that was asked for so far; this returns at once."""

    def copies_ahead(self, size: int) -> CopiesAhead:
        """Returns a prefetch queue for batches of up to `size` bytes, arrays rounded up to 256. Its memory is kept."""

    def mark(self) -> Mark:
        """Returns a time mark; the difference of two marks is the time between them in seconds."""


_chosen: int | None = None
_current: Device | None = None


def choose(ordinal: int) -> None:
    """The GPU for this process, before anything runs on another. Raises UserError where something does."""
    global _chosen
    if _current is not None and not INTERPRETED and ordinal != _ordinal():
        raise UserError(f"this process computes on GPU {_ordinal()} already: use cuda:{ordinal} in another one")
    _chosen = ordinal


def _ordinal() -> int:
    """Number of the GPU: that of `choose`, or of LLMPY_CUDA_DEVICE, or 0."""
    if _chosen is not None:
        return _chosen
    asked = os.environ.get(ORDINAL, "").strip() or "0"
    if not asked.isdecimal():
        raise UserError(f"{ORDINAL}={asked} is no number of a GPU: give 0, 1, ...")
    return int(asked)


def current() -> Device:
    """The device of this process, opened on first use. Raises UserError where it cannot be."""
    global _current
    if _current is None:
        if INTERPRETED:
            from llmpy.kernels.cuda.runtime.interpreter_device import Host

            _current = Host()
        else:
            from llmpy.kernels.cuda.runtime.gpu import Gpu

            _current = Gpu(_ordinal())
    return _current
