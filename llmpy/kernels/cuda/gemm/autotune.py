"""GEMM autotuner: picks cuBLASLt (and its algorithm) or the Triton kernel (and its tiles) for each shape.

The choice is a guess until `tuning` has timed the candidates on the arrays of a run. A file for this GPU and these
libraries remembers the fastest candidate, so a repeated run makes the same choices and computes the same bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import triton

from llmpy.errors import UserError
from llmpy.kernels.cuda.gemm import cublaslt
from llmpy.kernels.cuda.gemm.problem import COLUMN_SUMS, NOTHING, Product, describe
from llmpy.kernels.cuda.gemm.tile_sizes import Tiles, candidates, guess
from llmpy.kernels.cuda.gemm.triton_gemm import gemm
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.gpu_requirements import EXTRA
from llmpy.utils.atomic_files import cache_dir, write_text_atomic

GEMMS = ("auto", "cublas", "triton")
TRIED = 4  # tiles that are tried for a matmul: each takes seconds to compile, once
REPEATS = 5  # runs of a candidate when it is timed

Timer = Callable[[Callable[[], None]], float]
T = TypeVar("T")


@dataclass(frozen=True)
class InTiles:
    """A candidate: the Triton kernel with these tiles."""

    tiles: Tiles

    def run(self, product: Product, c, a, b, bias, extra) -> None:
        gemm(product, self.tiles, c, a, b, bias, extra)


@dataclass(frozen=True)
class ByLibrary:
    """A candidate: cuBLASLt with this algorithm; `fused`: cuBLASLt also computes the column sums, if there are any."""

    plan: cublaslt.Plan
    algorithm: bytes
    fused: bool

    def run(self, product: Product, c, a, b, bias, extra) -> None:
        self.plan.run(self.algorithm, c, a, b, bias, extra, product.accumulate)


Way = InTiles | ByLibrary

_asked = "auto"
_ways: dict[Product, Way] = {}  # accumulating and overwriting share a candidate
_remembered: dict[str, list] | None = None  # contents of the file, by the key of a matmul
_timer: Timer | None = None


def set_gemm(name: str) -> None:
    """Chooses the GEMM from now on: `cublas`, `triton`, or `auto`, the faster of the two.

    Raises UserError for another name, and for `cublas` where cuBLASLt cannot be used.
    """
    global _asked, _remembered
    if name not in GEMMS:
        raise UserError(f"no matrix products by {name!r}: use {', '.join(GEMMS[:-1])} or {GEMMS[-1]}")
    if name == "cublas" and (missing := _missing_library()):
        raise UserError(f"cuBLASLt cannot be used ({missing}): {EXTRA}, or choose triton")
    _asked, _remembered = name, None
    _ways.clear()


def multiply(
    c: DeviceArray, a: DeviceArray, b: DeviceArray, layout: int, accumulate: bool = False, epilogue: int = NOTHING,
    bias: DeviceArray | None = None, extra: DeviceArray | None = None,
) -> None:  # fmt: skip
    """c = a @ b with this `layout` and `epilogue` (problem.py); c += if `accumulate`."""
    product = describe(c, a, b, layout, accumulate, epilogue, bias, extra)
    written = replace(product, accumulate=False)
    way = _ways.get(written)
    if way is None:
        way = _ways[written] = _choose(product, lambda tried: tried.run(product, c, a, b, bias, extra))
    way.run(product, c, a, b, bias, extra)


@contextmanager
def tuning(timer: Timer | None = None) -> Iterator[None]:
    """A context that times all candidates of each matmul that the file does not know, and keeps the fastest.

    A candidate runs several times on the arrays of its call, so accumulated results and arrays changed in place are
    meaningless afterwards: run a micro-step here whose results are discarded. timer(run) returns seconds.
    """
    global _timer
    _timer = timer or seconds
    _ways.clear()
    try:
        yield
    finally:
        _timer = None
        _remember()


def seconds(function: Callable[[], None]) -> float:
    """Seconds of one of several runs in a row, by the device's clock; the first run, which compiles, does not count."""
    function()
    current = device.current()
    start = current.mark()
    for _ in range(REPEATS):
        function()
    return (current.mark() - start) / REPEATS


def fastest(ways: Sequence[T], run: Callable[[T], None], timer: Timer) -> T:
    """The candidate with the shortest time; the first of equals. Candidates that fail are skipped.

    Raises the last error if all candidates fail.
    """
    best: T | None = None
    least, failure = float("inf"), None
    for way in ways:
        try:
            time = timer(partial(run, way))
        except Exception as error:  # such as too much shared memory for this GPU: each library has errors of its own
            failure = error
            continue
        if best is None or time < least:
            best, least = way, time
    if best is None:
        raise failure or ValueError("nothing to choose from")
    return best


def _choose(product: Product, run: Callable[[Way], None]) -> Way:
    if way := _known(product):
        return way
    if _timer is None:
        return next(_library_ways(product, 1), None) or InTiles(guess(product, _capability()))
    ways: list[Way] = [*_library_ways(product), *_tile_ways(product)]
    return fastest(ways, run, _timer)


def _library_ways(product: Product, count: int = 8) -> Iterator[ByLibrary]:
    if _asked == "triton" or _missing_library() or not cublaslt.supports(product):
        return
    for fused in (True, False) if product.epilogue == COLUMN_SUMS else (False,):
        plan = cublaslt.Plan(product, fused)
        for algorithm in plan.algorithms(count):
            yield ByLibrary(plan, algorithm, fused)


def _tile_ways(product: Product) -> list[InTiles]:
    """The tiles to try; none if only cuBLASLt is asked for and supports the matmul."""
    if _asked == "cublas" and next(_library_ways(product, 1), None):
        return []
    if device.INTERPRETED:
        return [InTiles(guess(product, _capability()))]
    return [InTiles(tiles) for tiles in candidates(product, _capability())[:TRIED]]


def _missing_library() -> str:
    """The reason why cuBLASLt cannot be used, or an empty string."""
    try:
        cublaslt.library()
    except Exception as error:  # a package, a library or a driver that is not there: each says it in its own type
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def _capability() -> tuple[int, int]:
    return device.current().capability


# ---- the file ------------------------------------------------------------------------------------------------------


def _path() -> Path:
    name = re.sub(r"[^A-Za-z0-9]+", "-", device.current().name).strip("-")
    return cache_dir() / "products" / f"{name}-{_asked}.json"


def _versions() -> list:
    """The versions for which a remembered candidate is valid."""
    return [triton.__version__, "" if _missing_library() else cublaslt.library().get_version(), *_capability()]


def _known(product: Product) -> Way | None:
    """The candidate that was fastest when this machine measured it; None if not measured."""
    global _remembered
    if _remembered is None:
        _remembered = _read()
    match _remembered.get(product.key):
        case ["tiles", list(numbers)] if len(numbers) == len(Tiles._fields):
            return InTiles(Tiles(*numbers))
        case ["cublaslt", bool(fused), str(algorithm)] if not _missing_library():
            return ByLibrary(cublaslt.Plan(product, fused), bytes.fromhex(algorithm), fused)
    return None


def _read() -> dict[str, list]:
    """The candidates in the file; empty if the file is missing, damaged, or of other versions."""
    try:
        held = json.loads(_path().read_text())
        return held["ways"] if held["versions"] == _versions() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember() -> None:
    global _remembered
    ways = dict(_remembered or {})
    for product, way in _ways.items():
        if isinstance(way, InTiles):
            ways[product.key] = ["tiles", list(way.tiles)]
        else:
            ways[product.key] = ["cublaslt", way.fused, way.algorithm.hex()]
    write_text_atomic(_path(), json.dumps({"versions": _versions(), "ways": ways}, indent=1))
    _remembered = ways
