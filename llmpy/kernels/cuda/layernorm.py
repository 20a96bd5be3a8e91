"""Layer normalisation (Ba, Kiros, Hinton 2016): a program holds whole rows, so each is read once and written once."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.primitives.reduce import add_rows
from llmpy.kernels.cuda.primitives.row_blocks import row_tile
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch
from llmpy.kernels.cuda.runtime.workspace import scratch

EPS = tl.constexpr(1e-5)
PROGRAMS = 4 if INTERPRETED else 528  # of the backward pass; 4 for each multiprocessor of an H200


def layernorm_forward(
    y: DeviceArray, mean: DeviceArray, rstd: DeviceArray, x: DeviceArray, w: DeviceArray, b: DeviceArray
) -> None:
    """x [N, C], w [C], b [C] -> y [N, C]; mean [N] and rstd [N] are kept for the backward pass."""
    N, C = x.shape
    block = row_tile(C)
    launch(_forward, (cdiv(N, block["rows"]),), y, mean, rstd, x, w, b, N, C, **block)


def layernorm_backward(
    dresidual: DeviceArray,
    dw: DeviceArray,
    db: DeviceArray,
    dy: DeviceArray,
    x: DeviceArray,
    w: DeviceArray,
    mean: DeviceArray,
    rstd: DeviceArray,
) -> None:
    """dy [N, C]; dresidual [N, C], dw [C] and db [C] are added to: x is the residual stream, which has a gradient
    already."""
    N, C = x.shape
    block = row_tile(C)
    programs = min(cdiv(N, block["rows"]), PROGRAMS)
    parts = scratch("norm gradients", 2, programs, C, dtype=np.float32)
    launch(_backward, (programs,), dresidual, parts, dy, x, w, mean, rstd, N, C, **block)
    add_rows(dw, parts[0])
    add_rows(db, parts[1])


@triton.jit
def _forward(y, mean, rstd, x, w, b, N, C, rows: tl.constexpr, columns: tl.constexpr):
    row, column = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, columns)
    at = row.to(tl.int64)[:, None] * C + column[None, :]
    in_row = column < C
    inside = (row < N)[:, None] & in_row[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    average = tl.sum(value, 1) / C
    centred = tl.where(in_row[None, :], value - average[:, None], 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 1) / C + EPS)
    weight, bias = tl.load(w + column, mask=in_row, other=0.0), tl.load(b + column, mask=in_row, other=0.0)
    result = centred * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, average, mask=row < N)
    tl.store(rstd + row, scale, mask=row < N)


@triton.jit
def _backward(dresidual, parts, dy, x, w, mean, rstd, N, C, rows: tl.constexpr, columns: tl.constexpr):
    """Program i: every `programs`-th tile of rows; its sums for dw -> parts[0, i], for db -> parts[1, i]."""
    program, programs, column = tl.program_id(0), tl.num_programs(0), tl.arange(0, columns)
    in_row = column < C
    weight = tl.load(w + column, mask=in_row, other=0.0)
    dw, db = tl.zeros((rows, columns), tl.float32), tl.zeros((rows, columns), tl.float32)
    for start in range(program * rows, N, programs * rows):
        row = start + tl.arange(0, rows)
        at = row.to(tl.int64)[:, None] * C + column[None, :]
        inside = (row < N)[:, None] & in_row[None, :]
        average = tl.load(mean + row, mask=row < N, other=0.0)
        scale = tl.load(rstd + row, mask=row < N, other=0.0)
        gradient = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        before = tl.load(dresidual + at, mask=inside, other=0.0).to(tl.float32)
        norm = tl.where(inside, (value - average[:, None]) * scale[:, None], 0.0)
        dw += gradient * norm
        db += gradient
        dnorm = gradient * weight[None, :]
        along, across = tl.sum(dnorm * norm, 1) / C, tl.sum(dnorm, 1) / C
        dx = scale[:, None] * (dnorm - across[:, None] - norm * along[:, None])
        tl.store(dresidual + at, (before + dx).to(dresidual.dtype.element_ty), mask=inside)
    place = parts + program.to(tl.int64) * C + column
    tl.store(place, tl.sum(dw, 0), mask=in_row)
    tl.store(place + programs.to(tl.int64) * C, tl.sum(db, 0), mask=in_row)
