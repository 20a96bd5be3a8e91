"""Scratch memory of the kernels, and the threads that use it: taken when first needed, reused by every call after."""

from __future__ import annotations

import os
from pathlib import Path

import numba
import numpy as np

from llmpy.errors import UserError
from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.utils.memory import MemoryPlan

# How long an OpenMP thread spins before it sleeps; read when Numba loads OpenMP. The default is milliseconds: where
# other programs want the cores too, each kernel would wait for them that long. With none at all each kernel would wait
# to be woken.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # about 0.1 ms, the time between two kernels

_arrays: dict[str, np.ndarray] = {}


def scratch(name: str, *shape: int, dtype: type = np.float32) -> np.ndarray:
    """The array of this name, at least as large as `shape` along every axis; it grows where a call needs more."""
    array = _arrays.get(name)
    if (
        array is None
        or len(shape) != array.ndim
        or any(have < want for have, want in zip(array.shape, shape, strict=True))
    ):
        plan = MemoryPlan()
        plan.add("kernels", name, *shape, dtype=dtype)
        array = _arrays[name] = plan.take()[name]
    return array


def scratch_bytes() -> int:
    """Bytes of scratch taken so far."""
    return sum(array.nbytes for array in _arrays.values())


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted: two threads on one core share its multipliers."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return max(1, len(cores))


def set_threads(n: int | None = None) -> int:
    """Use n threads from now on (default: the physical cores) and return n. Raises UserError where there are not that
    many."""
    most = 1 if ISA.bfloat16 == "emulated matrix" else numba.config.NUMBA_NUM_THREADS
    n = n or min(physical_cores(), most)
    if not 1 <= n <= most:
        raise UserError(f"--threads {n}: this machine offers 1 to {most}")
    numba.set_num_threads(n)
    return n
