"""Memory taken from the system in large pieces, and given out of them in order: small arrays cost no call of the
driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ALIGNMENT = 256  # bytes: what the widest load of a kernel and the products of cuBLASLt ask for
PIECE = 32 * 2**20


class Arena:
    """`allocate(size)` gives a piece of memory: its address, aligned, and the object that keeps it.

    What is larger than half a piece gets one of its own, just as large: a plan is taken whole, and goes back whole.
    """

    def __init__(self, allocate: Callable[[int], tuple[int, Any]], piece: int = PIECE) -> None:
        self._allocate, self._piece = allocate, piece
        self._next = self._end = 0  # the rest of the newest piece
        self._keeper: Any = None

    def take(self, size: int) -> tuple[int, Any]:
        """`size` bytes -> their address, aligned to 256, and the object that keeps them."""
        size = aligned(max(size, 1))
        if size > self._piece // 2:
            return self._allocate(size)
        if size > self._end - self._next:
            self._next, self._keeper = self._allocate(self._piece)
            self._end = self._next + self._piece
        address = self._next
        self._next += size
        return address, self._keeper


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
