"""Sums and means in an order that depends on the shape alone: the same bits on every run, on every GPU."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.gemm.problem import row_stride
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch, power_of_2
from llmpy.kernels.cuda.runtime.workspace import scratch

BLOCK = 2**15 if INTERPRETED else 2048  # numbers of a program at a time
PROGRAMS = 1024  # at most; 7 for each multiprocessor of an H200
PIECES = 64  # of the rows, at most: with a few hundred columns a program, enough programs for any GPU


def sum_parts(x: DeviceArray, squares: bool = False) -> DeviceArray:
    """x, any shape -> scratch, float64 [at most PROGRAMS]: sums of parts of x, or of their squares."""
    programs = min(cdiv(x.size, BLOCK), PROGRAMS)
    parts = scratch("sums of parts", programs, dtype=np.float64)
    launch(_sum_parts, (programs,), parts, x, x.size, squares=squares, block=BLOCK)
    return parts


def mean(y: DeviceArray, x: DeviceArray) -> None:
    """y [1] = the mean of x, any shape, summed in float64. Does not wait for the device."""
    parts = sum_parts(x)
    launch(_finish_mean, (1,), y, parts, len(parts), x.size, block=PROGRAMS)


def add_rows(y: DeviceArray, x: DeviceArray) -> None:
    """float32 y [C] += every row of x [N, C], in one kernel: for a small N, such as the parts of a sum."""
    N, C = x.shape
    block = rows_configuration(C)
    launch(_add_rows, (cdiv(C, block["columns"]),), y, x, N, C, **block)


def add_column_sums(y: DeviceArray, x: DeviceArray) -> None:
    """float32 y [C] += the column sums of x [N, C], such as the gradient of a bias. The result repeats bit by bit.

    One kernel sums pieces of the rows, a second kernel sums the pieces: floats are added in one order only.
    """
    rows, columns = x.shape
    chosen = column_sums_configuration(rows, columns)
    blocks = cdiv(rows, chosen["block_rows"])
    piece_rows = cdiv(blocks, min(PIECES, blocks)) * chosen["block_rows"]
    pieces = cdiv(rows, piece_rows)
    sums = scratch("pieces of column sums", pieces, columns, dtype=np.float32)
    across = cdiv(columns, chosen["block_columns"])
    launch(sum_pieces, (across, pieces), sums, x, rows, columns, row_stride(x), piece_rows, **chosen)
    launch(
        add_pieces, (across,), y, sums, pieces, columns, block_pieces=power_of_2(pieces),
        block_columns=chosen["block_columns"], num_warps=chosen["num_warps"],
    )  # fmt: skip


def rows_configuration(C: int) -> dict[str, int]:
    """Rows and columns of a block of `add_rows`, and warps; a small C gets narrow blocks, for enough programs."""
    if INTERPRETED:
        return {"rows": 16, "columns": 2048, "num_warps": 4}
    rows, columns = (64, 32) if C <= 2**14 else (8, 256)
    return {"rows": rows, "columns": columns, "num_warps": 4}


def column_sums_configuration(rows: int, columns: int) -> dict[str, int]:
    """Rows and columns of a block of `add_column_sums`, and warps."""
    if INTERPRETED:
        return {
            "block_rows": min(1024, power_of_2(rows)),
            "block_columns": min(1024, power_of_2(columns)),
            "num_warps": 4,
        }
    return {"block_rows": 32, "block_columns": 128, "num_warps": 4}


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
def _add_rows(y, x, N, C, rows: tl.constexpr, columns: tl.constexpr):
    column = tl.program_id(0).to(tl.int64) * columns + tl.arange(0, columns)
    inside = column < C
    total = tl.zeros((rows, columns), tl.float32)
    for start in range(0, N, rows):
        row = start + tl.arange(0, rows)
        at = row.to(tl.int64)[:, None] * C + column[None, :]
        total += tl.load(x + at, mask=(row < N)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    before = tl.load(y + column, mask=inside, other=0.0)
    tl.store(y + column, before + tl.sum(total, 0), mask=inside)


@triton.jit
def sum_pieces(sums, x, rows, columns, stride, piece_rows, block_rows: tl.constexpr, block_columns: tl.constexpr):
    """Writes sums [pieces, columns]: the column sums of every `piece_rows` rows of x."""
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    start = tl.program_id(1) * piece_rows
    stop = tl.minimum(start + piece_rows, rows)
    total = tl.zeros([block_rows, block_columns], tl.float32)
    for first in range(start, stop, block_rows):
        row = first + tl.arange(0, block_rows)
        inside = (row < stop)[:, None] & (column < columns)[None, :]
        total += tl.load(x + row.to(tl.int64)[:, None] * stride + column[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(sums + tl.program_id(1) * columns + column, tl.sum(total, 0), mask=column < columns)


@triton.jit
def add_pieces(y, sums, pieces, columns, block_pieces: tl.constexpr, block_columns: tl.constexpr):
    """y [columns] += sums [pieces, columns]"""
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    piece = tl.arange(0, block_pieces)
    inside = (piece < pieces)[:, None] & (column < columns)[None, :]
    total = tl.sum(tl.load(sums + piece[:, None] * columns + column[None, :], mask=inside, other=0.0), 0)
    total += tl.load(y + column, mask=column < columns, other=0.0)
    tl.store(y + column, total, mask=column < columns)
