"""The sums of a matrix's columns: the gradient of a bias. Two kernels, since floats are added in one order only."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.gemm.problem import row_stride
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch, power_of_2
from llmpy.kernels.cuda.runtime.workspace import scratch

PIECES = 64  # of the rows, at most: with a few hundred columns to a program, enough programs for any card


def configuration(rows: int, columns: int) -> dict[str, int]:
    """Rows and columns of a block, and warps."""
    if INTERPRETED:
        return {
            "block_rows": min(1024, power_of_2(rows)),
            "block_columns": min(1024, power_of_2(columns)),
            "num_warps": 4,
        }
    return {"block_rows": 32, "block_columns": 128, "num_warps": 4}


@triton.jit
def sum_pieces(sums, x, rows, columns, stride, piece_rows, block_rows: tl.constexpr, block_columns: tl.constexpr):
    """sums [pieces, columns]: of `piece_rows` rows each."""
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


def add_column_sums(y: DeviceArray, x: DeviceArray) -> None:
    """float32 y [C] += x [N, C] summed over the rows; the same bits every time."""
    rows, columns = x.shape
    chosen = configuration(rows, columns)
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
