"""The memory of this machine: available, physical and peak bytes, within the limit of a container (cgroup v2)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

RESERVE = 256 * 2**20  # bytes left to the interpreter, the compiler and the rest of the system


def room() -> int | None:
    """Returns the headroom of a memory plan: available bytes minus RESERVE; None if the system does not say."""
    available = available_memory()
    return None if available is None else max(0, available - RESERVE)


def available_memory() -> int | None:
    """Returns the bytes that can be allocated without swapping, or None if the system does not say."""
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
    """Returns the bytes that the container's limit leaves (cgroup v2), or None without a limit."""
    try:
        with open("/sys/fs/cgroup/memory.max") as maximum, open("/sys/fs/cgroup/memory.current") as current:
            return int(maximum.read()) - int(current.read())
    except (OSError, ValueError):
        return None


def physical_memory() -> int | None:
    """Returns the total bytes that this process could have, free or not; None if the system does not say."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return whole


def peak_memory() -> int:
    """Returns the peak memory of this process so far, in bytes (0 if the system does not say)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
