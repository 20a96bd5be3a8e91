"""Memory: planned as a list of named arrays, taken once from the system, constant afterwards.

One mapping on huge pages holds everything. That is not only tidy: a training step in a framework spends a third of its
time on page faults of freshly mapped buffers, and here there are none after the first step.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from llmpy.errors import UserError

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
HUGE_PAGE = 2 * 1024 * 1024
TRAINING_ADVICE = "lower --batch-size or --sequence-length, raise --recompute, or choose a smaller model"
RESERVE = 256 * 2**20  # left to the interpreter, the compiler and the rest of the system


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
        """Where each array begins when they lie one after the other, aligned, and the bytes of them all."""
        offsets, end = [], 0
        for entry in self.entries:
            offsets.append(end)
            end += -(-entry.bytes // alignment) * alignment
        return offsets, end

    def report(self) -> str:
        """One line a group, in MB, for a person."""
        groups: dict[str, int] = {}
        for entry in self.entries:
            groups[entry.group] = groups.get(entry.group, 0) + entry.padded_bytes
        parts = ", ".join(f"{group} {size / 1e6:,.0f}" for group, size in groups.items())
        return f"memory: {self.bytes / 1e6:,.0f} MB ({parts})"

    def take(self, advice: str = TRAINING_ADVICE) -> dict[str, np.ndarray]:
        """All arrays, zeroed. Raises UserError, before anything is taken, where the machine has less memory; `advice`
        says how to need less."""
        free = room()
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


def room() -> int | None:
    """Bytes that a plan may have: what is available, less what the rest of the system needs; None as there."""
    available = available_memory()
    return None if available is None else max(0, available - RESERVE)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, or None where the system does not say."""
    limit = _cgroup_headroom()
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        try:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return limit
    return free if limit is None else min(free, limit)


def _cgroup_headroom() -> int | None:
    """What a container's limit leaves (cgroup v2), or None where there is no limit."""
    try:
        with open("/sys/fs/cgroup/memory.max") as maximum, open("/sys/fs/cgroup/memory.current") as current:
            return int(maximum.read()) - int(current.read())
    except (OSError, ValueError):
        return None


def physical_memory() -> int | None:
    """Bytes of memory that this process could have, whoever has them now; None where the system does not say."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return whole


def peak_memory() -> int:
    """The most memory this process has held so far, in bytes (0 where the system does not say)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
