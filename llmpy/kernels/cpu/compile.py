"""Compilation: every kernel declares its signature, is compiled once on a machine, and is read from disk from then on.

`@kernel` compiles nothing. The first call of `compile_all` does, showing how far it is; importing the package costs
nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding
from numba import njit, types

from llmpy.files import cache_dir
from llmpy.kernels.cpu.isa import ISA

# Reassociation lets sums run in vector lanes; the rest keeps NaN and infinity what they are, so that a broken run
# shows.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
# Of Numba's parallel transformations only prange: the others would look for parallelism where there is none, at compile
# time.
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

helper = njit(fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
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
    digest = hashlib.sha256(
        f"{numba.__version__} {llvmlite.__version__} {binding.get_host_cpu_name()} {ISA.name}".encode()
    )
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return cache_dir() / "kernels" / digest.hexdigest()[:16]


def compile_all(report: Callable[[int, int, str], None] | None = None) -> None:
    """Compile every kernel, or load it from disk. `report(done, total, name)` is told before each one that must be
    compiled.

    The first time on a machine, a second process compiles every other kernel meanwhile: LLVM runs on one core only.
    """
    marker = _cache_folder() / "complete"
    fresh = not marker.exists()
    assistant = _start_assistant() if fresh else None
    mine, others = (_kernels[0::2], _kernels[1::2]) if assistant else (_kernels, [])
    for number, (dispatcher, signature) in enumerate(mine):
        if report and fresh:
            report(number * len(_kernels) // len(mine), len(_kernels), _title(dispatcher))
        _compile(dispatcher, signature)
    if assistant:
        assistant.wait()  # whatever it could not do is compiled here
    for dispatcher, signature in others:
        _compile(dispatcher, signature)
    if fresh:
        if report:
            report(len(_kernels), len(_kernels), "done")
        with contextlib.suppress(OSError):  # a folder that cannot be written: it works, and compiles again next time
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()


def _compile(dispatcher: Any, signature: tuple[Any, ...]) -> None:
    """For its own signature and no other: arguments are converted (a float64 to float32, a contiguous array to one with
    strides) where Numba would otherwise compile the kernel a second time for them, in the middle of the first step."""
    if not dispatcher.signatures:
        dispatcher.compile(signature)
        dispatcher.disable_compile()


def _title(dispatcher: Any) -> str:
    return dispatcher.py_func.__name__.strip("_").replace("_", " ")


def _start_assistant() -> subprocess.Popen[bytes] | None:
    """A process that compiles every second kernel into the cache, or None where a second core or process cannot be
    had."""
    if (os.cpu_count() or 1) < 2 or not sys.executable:
        return None
    root = str(Path(__file__).parents[3])
    code = "import sys; sys.path.insert(0, sys.argv[1]); from llmpy.kernels import cpu; cpu.compile_half()"
    try:
        return subprocess.Popen(
            [sys.executable, "-c", code, root], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return None


def compile_half() -> None:
    """What the second process does."""
    for dispatcher, signature in _kernels[1::2]:
        _compile(dispatcher, signature)
