"""The device that kernels run on: one GPU, or the host under Triton's interpreter (TRITON_INTERPRET=1).

Beside memory, a training step needs three things of a device: `captured`, which launches all kernels of a step at once;
`read_later`, which copies a value back while the device continues; and `copies_ahead`, the prefetch queue of batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from llmpy.errors import UserError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ORDINAL = "LLMPY_CUDA_DEVICE"  # the environment variable that chooses a GPU if --device does not


class Pending(Protocol):
    """A pending value of the device."""

    @property
    def arrived(self) -> bool: ...

    def __float__(self) -> float:
        """The value; waits until the device has computed it."""


class CopiesAhead(Protocol):
    """A prefetch queue: batches of arrays that are copied to the device in order, at most two at a time."""

    def put(self, *arrays: np.ndarray) -> None:
        """Starts copying a batch while the device computes; the arrays may change as soon as `put` returns.

        Raises ValueError if two batches wait already, or if the arrays take more bytes than planned.
        """

    def deliver(self, *addresses: int) -> None:
        """Copies the oldest batch to one address for each array, in order with the other work of the device.

        Raises ValueError if no batch waits.
        """


class Mark(Protocol):
    """A point in time on the stream."""

    def __sub__(self, earlier: Any) -> float:
        """Seconds between two marks; waits until the device has reached both."""


class Device(Protocol):
    """Memory and execution order: copies and kernels run one after the other on one stream."""

    @property
    def name(self) -> str: ...

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability: (9, 0) is Hopper."""

    @property
    def stream(self) -> int:
        """The handle of the stream, for libraries such as cuBLASLt; 0 under the interpreter."""

    def memory(self) -> tuple[int, int]:
        """Bytes of memory that are free, and bytes in total."""

    def take(self, size: int) -> tuple[int, Any]:
        """Allocates `size` bytes; returns their address, aligned to 256, and the object that owns them.

        Raises UserError if memory is short.
        """

    def copy_in(self, address: int, array: np.ndarray) -> None:
        """Copies a contiguous array of the host, which may change as soon as `copy_in` returns."""

    def copy_out(self, array: np.ndarray, address: int) -> None:
        """Copies to an array of the host; waits until the copy is done."""

    def copy(self, to: int, address: int, size: int) -> None: ...

    def clear(self, address: int, size: int) -> None: ...

    def synchronize(self) -> None:
        """Waits until all work of the device is done."""

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        """Returns the function as one call of the device, a CUDA graph.

        The first call runs the function: its kernels are compiled, its scratch is allocated. The second call captures
        the work of the function, and later calls repeat that work without calling the function. The function must
        always do the same work at the same addresses, and neither allocate nor read memory.
        """

    def read_later(self, address: int, dtype: Any = np.float32) -> Pending:
        """Starts copying one value to the host, in order with earlier work; returns at once."""

    def copies_ahead(self, size: int) -> CopiesAhead:
        """A prefetch queue for batches of up to `size` bytes, each array rounded up to 256. Never frees its memory."""

    def mark(self) -> Mark:
        """A mark on the stream; the difference of two marks is the time in seconds between them."""


_chosen: int | None = None
_current: Device | None = None


def choose(ordinal: int) -> None:
    """Chooses the GPU of this process. Raises UserError if the process computes on another GPU already."""
    global _chosen
    if _current is not None and not INTERPRETED and ordinal != _ordinal():
        raise UserError(f"this process computes on GPU {_ordinal()} already: use cuda:{ordinal} in another one")
    _chosen = ordinal


def _ordinal() -> int:
    """The number of the GPU from `choose`, or from LLMPY_CUDA_DEVICE, or 0."""
    if _chosen is not None:
        return _chosen
    asked = os.environ.get(ORDINAL, "").strip() or "0"
    if not asked.isdecimal():
        raise UserError(f"{ORDINAL}={asked} is no number of a GPU: give 0, 1, ...")
    return int(asked)


def current() -> Device:
    """The device of this process, opened on first use. Raises UserError if the device cannot be opened."""
    global _current
    if _current is None:
        if INTERPRETED:
            from llmpy.kernels.cuda.runtime.interpreter_device import Host

            _current = Host()
        else:
            from llmpy.kernels.cuda.runtime.gpu import Gpu

            _current = Gpu(_ordinal())
    return _current
