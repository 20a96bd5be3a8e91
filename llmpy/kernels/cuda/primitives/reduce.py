"""Sums over many numbers, in an order that depends on their count alone: the same bits on every run, on every card."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch
from llmpy.kernels.cuda.runtime.workspace import scratch

BLOCK = 2**15 if INTERPRETED else 2048  # numbers of a program at a time
PROGRAMS = 1024  # at most; 7 for each multiprocessor of an H200


@triton.jit
def _sum_parts(parts, x, n, squares: tl.constexpr, block: tl.constexpr):
    """Program i: the sum of every `programs`-th block from the i-th on, or of its squares -> parts[i], float64."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros((block,), tl.float64)
    for turn in range(tl.cdiv(n, programs * block)):
        at = (turn * programs + program).to(tl.int64) * block + tl.arange(0, block)
        value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float64)
        total += value * value if squares else value
    tl.store(parts + program, tl.sum(total, 0))


@triton.jit
def _finish_mean(mean, parts, count, n, block: tl.constexpr):
    at = tl.arange(0, block)
    total = tl.sum(tl.load(parts + at, mask=at < count, other=0.0), 0)
    tl.store(mean, (total / n).to(mean.dtype.element_ty))


@triton.jit
def _add_column_sums(y, x, N, C, rows: tl.constexpr, columns: tl.constexpr):
    column = tl.program_id(0).to(tl.int64) * columns + tl.arange(0, columns)
    inside = column < C
    total = tl.zeros((rows, columns), tl.float32)
    for start in range(0, N, rows):
        row = start + tl.arange(0, rows)
        at = row.to(tl.int64)[:, None] * C + column[None, :]
        total += tl.load(x + at, mask=(row < N)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    before = tl.load(y + column, mask=inside, other=0.0)
    tl.store(y + column, before + tl.sum(total, 0), mask=inside)


def sum_parts(x: DeviceArray, squares: bool = False) -> DeviceArray:
    """x, any shape -> scratch, float64 [at most PROGRAMS]: sums of parts of x, or of their squares."""
    programs = min(cdiv(x.size, BLOCK), PROGRAMS)
    parts = scratch("sums of parts", programs, dtype=np.float64)
    launch(_sum_parts, (programs,), parts, x, x.size, squares=squares, block=BLOCK)
    return parts


def mean(y: DeviceArray, x: DeviceArray) -> None:
    """y, one number on the device = the mean of x, any shape; summed in float64. Waits for nothing."""
    parts = sum_parts(x)
    launch(_finish_mean, (1,), y, parts, len(parts), x.size, block=PROGRAMS)


def column_tile(C: int) -> dict[str, int]:
    """Few columns are shared by programs of a few and many rows, so that there are programs enough."""
    if INTERPRETED:
        return {"rows": 16, "columns": 2048, "num_warps": 4}
    rows, columns = (64, 32) if C <= 2**14 else (8, 256)
    return {"rows": rows, "columns": columns, "num_warps": 4}


def add_column_sums(y: DeviceArray, x: DeviceArray) -> None:
    """y [C], float32, += the sums of the columns of x [N, C]."""
    N, C = x.shape
    block = column_tile(C)
    launch(_add_column_sums, (cdiv(C, block["columns"]),), y, x, N, C, **block)
