"""Compilation: every kernel declares its signature, is compiled once on a machine, and is read from disk from then on.

`@kernel` compiles nothing. The first call of `compile_all` does, showing how far it is; importing the package costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import njit, types

from llmpy.files import cache_dir
from llmpy.kernels.cpu.isa import ISA

# Reassociation lets sums run in vector lanes; the rest keeps NaN and infinity what they are, so that a broken run shows.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
# Of Numba's parallel transformations only prange: the others would look for parallelism where there is none, at compile time.
_PARALLEL = {
    "prange": True,
    "comprehension": False,
    "reduction": False,
    "inplace_binop": False,
    "setitem": False,
    "numpy": False,
    "stencil": False,
    "fusion": False,
}

f32, f64, i32, i64, boolean = types.float32, types.float64, types.int32, types.int64, types.boolean
vector, matrix, cube = f32[::1], f32[:, ::1], f32[:, :, ::1]
strided4 = types.Array(f32, 4, "A")  # q, k, v: views into one buffer

_kernels: list[tuple[Any, tuple[Any, ...]]] = []

helper = njit(fastmath=FASTMATH, error_model="numpy", inline="never")
"""Decorates a function that kernels call."""


def kernel(*signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function over arrays of these types, with `prange` for its parallel loops."""

    def decorate(function: Callable[..., Any]) -> Any:
        previous = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(_cache_folder())  # read while decorating; put back, it is not ours alone
        try:
            dispatcher = njit(parallel=_PARALLEL, fastmath=FASTMATH, error_model="numpy", cache=True)(function)
        finally:
            numba.config.CACHE_DIR = previous
        _kernels.append((dispatcher, signature))
        return dispatcher

    return decorate


def _cache_folder() -> Path:
    """A folder named after all that the machine code depends on; Numba itself looks at one source file only."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {ISA.name}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return cache_dir() / "kernels" / digest.hexdigest()[:16]


def compile_all(report: Callable[[int, int, str], None] | None = None) -> None:
    """Compile every kernel, or load it from disk. `report(done, total, name)` is told before each one that must be compiled."""
    for number, (dispatcher, signature) in enumerate(_kernels):
        if dispatcher.signatures:
            continue
        if report:
            report(number, len(_kernels), dispatcher.py_func.__name__.strip("_"))
        dispatcher.compile(signature)
