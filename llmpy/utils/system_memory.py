"""The memory of this machine: available, physical and peak bytes, within the limit of a container (cgroup v2)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

RESERVE = 256 * 2**20  # bytes left to the interpreter, the compiler and the rest of the system


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
