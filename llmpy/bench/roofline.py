"""Measured ceilings of this machine: FLOP/s of a matmul with operands in the caches, and bytes/s from memory.

No operation can take less than the larger of FLOPs / (FLOP/s) and bytes / (bytes/s). The distance from that floor says
how much speed is left to gain (the roofline model of Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numba import prange

from llmpy import kernels
from llmpy.bench import timing
from llmpy.kernels.cpu.gemm.microkernel_vector import STORE
from llmpy.kernels.cpu.gemm.microkernels import BFLOAT16, FLOAT32, Products
from llmpy.kernels.cpu.jit.compile import f32, helper, i64, kernel, matrix, vector
from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.utils.memory import MemoryPlan

SECONDS = 0.5  # to measure one ceiling for
DEPTH = 256  # of a panel: both panels of a tile stay in the L1 or L2 cache
SQUARE = 1024  # rows and columns of a product by NumPy's library
STREAM_FLOATS = 32 * 2**20  # of each array that is streamed: 128 MB, several times the last cache
BLOCK = 65536  # floats to a task
STREAMS = 4  # that a core reads at once: so many, each through large parts, are what prefetching serves best


@dataclass(frozen=True)
class Ceilings:
    """The most that all threads together reach: operations a second in products, and bytes a second from memory."""

    flops: float
    bandwidth: float

    def floor(self, flops: float, nbytes: float) -> float:
        """The seconds that so many operations and bytes take at least: products and memory may overlap entirely."""
        return max(flops / self.flops, nbytes / self.bandwidth)

    def rounded(self) -> dict[str, float]:
        return {"gflops": round(self.flops / 1e9, 1), "gb_per_s": round(self.bandwidth / 1e9, 2)}


def ask(precision: str, threads: int) -> Ceilings:
    """Measured now, in a process of its own; two seconds."""
    with timing.worker("the ceilings") as process:
        settings = {"precision": precision, "threads": threads, "seconds": SECONDS}
        process.prepare("llmpy.bench.roofline:measuring", warm_up=0, **settings)
        return Ceilings(**process.result())


def reading(threads: int, seconds: float) -> Callable[[], float]:
    """Returns a worker's job, which gives the bytes/s that all threads together read from memory."""
    kernels.start("cpu", threads)
    return lambda: read_bandwidth(threads, seconds)


def measuring(precision: str, threads: int, seconds: float) -> Callable[[], dict[str, float]]:
    """Returns a worker's job, which gives the fields of Ceilings after `seconds` of measuring each."""
    kernels.start("cpu", threads, precision=precision)
    return lambda: asdict(Ceilings(product_flops(precision, threads, seconds), memory_bandwidth(seconds)))


def product_flops(precision: str, threads: int, seconds: float) -> float:
    """Operations a second of what makes our products in this precision."""
    if precision == "float32" and not ISA.own_gemm:
        return numpy_flops(seconds)
    tiles, P = TILES[precision]
    return tile_flops(tiles, P, threads, seconds)


def tile_flops(tiles: Callable[..., None], P: Products, threads: int, seconds: float) -> float:
    """Operations a second of a micro-kernel, with a pair of panels in the caches of every core."""
    plan = MemoryPlan()
    plan.add("panels", "panels", threads, DEPTH * (P.MR + P.NR) + P.MR * P.NR)
    panels, count = plan.take()["panels"], 2000  # a few ms
    panels.view(np.uint8)[...] = 0x3F  # 0.747 in any precision
    return threads * count * 2 * DEPTH * P.MR * P.NR / fastest(lambda: tiles(panels, count), seconds)


def numpy_flops(seconds: float) -> float:
    """Operations a second of NumPy's library, where it makes our products (it has threads of its own)."""
    a, b, c = (np.ones((SQUARE, SQUARE), np.float32) for _ in range(3))
    return 2 * SQUARE**3 / fastest(lambda: np.matmul(a, b, out=c), seconds)


def memory_bandwidth(seconds: float) -> float:
    """Bytes a second of a += s b over arrays beyond the caches, all cores: two reads and a write of each number.

    In place, as AdamW works: where a third array is written (STREAM's triad), processors first read what is overwritten
    and nobody counts it.
    """
    plan = MemoryPlan()
    plan.add("streams", "a", STREAM_FLOATS)
    plan.add("streams", "b", STREAM_FLOATS)
    a, b = plan.take().values()
    a[:], b[:] = 1, 1  # pages never written to are all the same one, which stays in the cache
    return 3 * a.nbytes / fastest(lambda: _add_scaled(a, b, 1e-9), seconds)


def read_bandwidth(threads: int, seconds: float) -> float:
    """Bytes a second of adding up numbers far beyond the caches, all cores: nothing is written, as in generating."""
    plan = MemoryPlan()
    plan.add("streams", "x", threads, 2 * STREAM_FLOATS // threads // STREAMS * STREAMS)
    x, totals = plan.take()["x"], np.empty(threads, np.float32)
    x[:] = 1
    return x.nbytes / fastest(lambda: _add_up(x, totals), seconds)


def fastest(work: Callable[[], Any], seconds: float) -> float:
    """The least seconds that it took in all the times that it could be done in `seconds`, the first not counted."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _make_loop(P: Products) -> Any:
    """loop(space, count): so many tiles from one pair of panels; `space` holds the tile of C, the A and the B panel."""
    MR, NR, item, tile, begin, end = P.MR, P.NR, P.item, P.tile, P.begin, P.end

    @helper
    def loop(space, count):  # type: ignore[no-untyped-def]
        a = space + MR * NR * 4
        begin()
        for _ in range(count):
            tile(DEPTH, a, a + DEPTH * MR * item, space, NR, STORE)
        end()

    return loop


_loop_float32, _loop_bfloat16 = _make_loop(FLOAT32), _make_loop(BFLOAT16)


@kernel(matrix, i64, precisions=("float32",))
def _tiles_float32(panels, count):  # type: ignore[no-untyped-def]
    for thread in prange(panels.shape[0]):
        _loop_float32(panels[thread].ctypes.data, count)


@kernel(matrix, i64, precisions=("bfloat16",))
def _tiles_bfloat16(panels, count):  # type: ignore[no-untyped-def]
    for thread in prange(panels.shape[0]):
        _loop_bfloat16(panels[thread].ctypes.data, count)


TILES = {"float32": (_tiles_float32, FLOAT32), "bfloat16": (_tiles_bfloat16, BFLOAT16)}


@kernel(vector, vector, f32)
def _add_scaled(a, b, s):  # type: ignore[no-untyped-def]
    for block in prange((a.size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min(a.size, (block + 1) * BLOCK)
        a_, b_ = a[start:end], b[start:end]
        for i in range(a_.size):
            a_[i] += s * b_[i]


@kernel(matrix, vector, precisions=("float32",))
def _add_up(x, totals):  # type: ignore[no-untyped-def]
    for thread in prange(x.shape[0]):
        part = x.shape[1] // STREAMS
        a, b, c, d = x[thread, :part], x[thread, part:], x[thread, 2 * part :], x[thread, 3 * part :]
        total_a = total_b = total_c = total_d = np.float32(0)
        for i in range(part):
            total_a += a[i]
            total_b += b[i]
            total_c += c[i]
            total_d += d[i]
        totals[thread] = total_a + total_b + total_c + total_d
