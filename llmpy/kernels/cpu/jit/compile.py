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
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

import llvmlite
import ml_dtypes
import numba
import numpy as np
from llvmlite import binding
from numba import njit, types

from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.utils.atomic_files import cache_dir

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
PRECISIONS = ("float32", "bfloat16")

f32, f64, i32, i64, boolean = types.float32, types.float64, types.int32, types.int64, types.boolean
vector, matrix, cube = f32[::1], f32[:, ::1], f32[:, :, ::1]


class Activations:
    """Array type in a signature: the precision of the run, float32 or (the bits of) bfloat16.

    `or_float32`: in a bfloat16 run it may be either.
    """

    def __init__(self, ndim: int, layout: str = "C", or_float32: bool = False) -> None:
        self._ndim, self._layout, self._or_float32 = ndim, layout, or_float32

    def types(self, precision: str) -> list[Any]:
        numbers = [types.uint16] if precision == "bfloat16" else [f32]
        if self._or_float32 and f32 not in numbers:
            numbers.append(f32)
        return [types.Array(number, self._ndim, self._layout) for number in numbers]


acts1, acts2, acts3 = Activations(1), Activations(2), Activations(3)
acts4 = Activations(4, "A")  # q, k, v: views into one buffer


class Kernel:
    """A compiled function and the signatures that a run of each precision calls it with."""

    def __init__(self, dispatcher: Any, signature: tuple[Any, ...], precisions: tuple[str, ...]) -> None:
        self.dispatcher, self._signature, self._precisions = dispatcher, signature, precisions
        self._compiled: set[str] = set()

    def __call__(self, *arguments: Any) -> Any:
        arguments = tuple([as_bits(x) if x.__class__ is np.ndarray else x for x in arguments])
        try:
            return self.dispatcher(*arguments)
        except TypeError:  # a model of the other precision, in a process that was made ready for one
            missing = set(self._precisions) - self._compiled
            if not self._compiled or not missing:
                raise
            for precision in missing:
                self.compile(precision)
        return self.dispatcher(*arguments)

    @property
    def title(self) -> str:
        return self.dispatcher.py_func.__name__.strip("_").replace("_", " ")

    def signatures(self, precision: str) -> Iterator[tuple[Any, ...]]:
        """Yields all signatures that a run of this precision uses."""
        if precision in self._precisions:
            yield from product(
                *[part.types(precision) if isinstance(part, Activations) else [part] for part in self._signature]
            )

    def compile(self, precision: str) -> None:
        """Compiles the kernel for its own signatures and for no others.

        Arguments are converted instead (float64 to float32, a contiguous array to a strided one): otherwise Numba would
        compile another version in the middle of the first step.
        """
        self.dispatcher.disable_compile(False)
        for signature in self.signatures(precision):
            if signature not in self.dispatcher.overloads:
                self.dispatcher.compile(signature)
        self.dispatcher.disable_compile()
        self._compiled.add(precision)


class Entry:
    """A function of so many int64 arguments that kernels call through its `address`, which is 0 until it is compiled.

    `call` does it from Python.
    """

    call: Callable[..., None]

    def __init__(self, function: Callable[..., None], arguments: int) -> None:
        self._function, self._arguments, self.address = function, arguments, 0

    @property
    def title(self) -> str:
        return self._function.__name__.removesuffix("_entry").replace("_", " ")

    def signatures(self, precision: str) -> Iterator[tuple[Any, ...]]:
        yield (i64,) * self._arguments

    def compile(self, precision: str) -> None:
        if not self.address:
            with _cached():
                self._compiled = numba.cfunc(
                    types.void(*[i64] * self._arguments), cache=True, fastmath=FASTMATH, error_model="numpy"
                )(self._function)
            self.address, self.call = self._compiled.address, self._compiled.ctypes


def as_bits(array: np.ndarray) -> np.ndarray:
    """A bfloat16 array as Numba can read it, uint16; any other as it is."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


_kernels: list[Kernel | Entry] = []

_helper_numbers = count()


def helper(function: Callable[..., Any]) -> Any:
    """Decorates a function that kernels call.

    Its name is made unique: kernels that two processes compiled are linked in one by the names of their helpers, which
    Numba numbers as each process meets them, so that two closures of one name could stand in for one another.
    """
    function.__qualname__ += f"_{next(_helper_numbers)}"
    return njit(fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def kernel(*signature: Any, precisions: tuple[str, ...] = PRECISIONS) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorates a function over arguments of these types, with `prange` for its parallel loops.

    `precisions`: of the runs that call it.
    """

    def decorate(function: Callable[..., Any]) -> Kernel:
        with _cached():
            dispatcher = njit(parallel=_PARALLEL, fastmath=FASTMATH, error_model="numpy", cache=True)(function)
        _kernels.append(made := Kernel(dispatcher, signature, precisions))
        return made

    return decorate


def entry(arguments: int) -> Callable[[Callable[..., None]], Entry]:
    """Decorates a function over so many int64 arguments that kernels call through its address."""

    def decorate(function: Callable[..., None]) -> Entry:
        _kernels.append(made := Entry(function, arguments))
        return made

    return decorate


@contextlib.contextmanager
def _cached() -> Iterator[None]:
    """Numba reads the folder of its cache while it decorates; it is put back, for it is not ours alone."""
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_cache_folder())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = previous


def _cache_folder() -> Path:
    """A folder named after all that the machine code depends on; Numba itself looks at one source file only."""
    digest = hashlib.sha256(
        f"{numba.__version__} {llvmlite.__version__} {binding.get_host_cpu_name()} {ISA.name}".encode()
    )
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    return cache_dir() / "kernels" / digest.hexdigest()[:16]


def compile_all(report: Callable[[int, int, str], None] | None = None, precision: str = "float32") -> None:
    """Compile every kernel that a run of this precision calls, or load it from disk. `report(done, total, name)` is
    told before each one that must be compiled.

    The first time on a machine, a second process compiles every other kernel meanwhile: LLVM runs on one core only.
    """
    marker = _cache_folder() / f"complete-{precision}"
    fresh = not marker.exists()
    kernels = _of(precision)
    assistant = _start_assistant(precision) if fresh else None
    mine, others = (kernels[0::2], kernels[1::2]) if assistant else (kernels, [])
    for number, each in enumerate(mine):
        if report and fresh:
            report(number * len(kernels) // len(mine), len(kernels), each.title)
        each.compile(precision)
    if assistant:
        assistant.wait()  # whatever it could not do is compiled here
    for each in others:
        each.compile(precision)
    if fresh:
        if report:
            report(len(kernels), len(kernels), "done")
        with contextlib.suppress(OSError):  # a folder that cannot be written: it works, and compiles again next time
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()


def _of(precision: str) -> list[Kernel | Entry]:
    return [each for each in _kernels if any(True for _ in each.signatures(precision))]


def _start_assistant(precision: str) -> subprocess.Popen[bytes] | None:
    """A process that compiles every second kernel into the cache, or None where a second core or process cannot be
    had."""
    if (os.cpu_count() or 1) < 2 or not sys.executable:
        return None
    root = str(Path(__file__).parents[4])
    code = "import sys; sys.path.insert(0, sys.argv[1]); from llmpy.kernels import cpu; cpu.compile_half(sys.argv[2])"
    try:
        return subprocess.Popen(
            [sys.executable, "-c", code, root, precision], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return None


def compile_half(precision: str) -> None:
    """Compiles every second kernel: the task of the second process."""
    for each in _of(precision)[1::2]:
        each.compile(precision)
