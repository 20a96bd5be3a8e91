"""Memory: planned as a list of named arrays, taken once from the system, constant afterwards.

One mapping on huge pages holds everything. That is not only tidy: a training step in a framework spends a third of its
time on page faults of freshly mapped buffers, and here there are none after the first step.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass, field
from math import prod

import numpy as np

from llmpy.errors import UserError
from llmpy.utils import system_memory

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
HUGE_PAGE = 2 * 1024 * 1024
TRAINING_ADVICE = "lower --batch-size or --sequence-length, raise --recompute, or choose a smaller model"


@dataclass(frozen=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    group: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def padded_bytes(self) -> int:
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT


@dataclass
class MemoryPlan:
    """A list of arrays to be taken together. Nothing is allocated before `take`."""

    entries: list[_Entry] = field(default_factory=list)

    def add(self, group: str, name: str, *shape: int, dtype: type = np.float32) -> None:
        """Plan an array; `group` ("parameters", "activations", ...) is the line it is summed under in the report."""
        self.entries.append(_Entry(name, shape, np.dtype(dtype), group))

    @property
    def bytes(self) -> int:
        return sum(entry.padded_bytes for entry in self.entries)

    def layout(self, alignment: int = ALIGNMENT) -> tuple[list[int], int]:
        """Returns the aligned offset of each array in one buffer, and the bytes of the buffer."""
        offsets, end = [], 0
        for entry in self.entries:
            offsets.append(end)
            end += -(-entry.bytes // alignment) * alignment
        return offsets, end

    def report(self) -> str:
        """Returns a line with the MB of each group."""
        groups: dict[str, int] = {}
        for entry in self.entries:
            groups[entry.group] = groups.get(entry.group, 0) + entry.padded_bytes
        parts = ", ".join(f"{group} {size / 1e6:,.0f}" for group, size in groups.items())
        return f"memory: {self.bytes / 1e6:,.0f} MB ({parts})"

    def take(self, advice: str = TRAINING_ADVICE) -> dict[str, np.ndarray]:
        """Allocates all arrays, zeroed. Raises UserError before it allocates if the machine has too little memory;
        `advice` says how to need less."""
        free = system_memory.room()
        if free is not None and self.bytes > free:
            raise UserError(
                f"this needs {self.bytes / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: {advice}"
            )
        buffer, start = _map(self.bytes)
        return {
            entry.name: np.frombuffer(buffer, entry.dtype, prod(entry.shape), start + offset).reshape(entry.shape)
            for entry, offset in zip(self.entries, self.layout()[0], strict=True)
        }


def _map(size: int) -> tuple[mmap.mmap, int]:
    """An anonymous mapping of at least `size` bytes, and the offset in it at which a huge page begins."""
    try:
        buffer = mmap.mmap(-1, size + HUGE_PAGE)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"the system refused {size / 1e9:.1f} GB of memory ({error}): choose a smaller model or batch"
        ) from error
    start = -np.frombuffer(buffer, np.uint8).ctypes.data % HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages: slower, and right
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer, start
