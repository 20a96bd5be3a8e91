"""Root mean square normalisation (Zhang, Sennrich 2019): a program holds whole rows, as in layernorm.py."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.layernorm import PROGRAMS
from llmpy.kernels.cuda.primitives.reduce import add_rows
from llmpy.kernels.cuda.primitives.row_blocks import row_tile
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.launch import cdiv, launch
from llmpy.kernels.cuda.runtime.workspace import scratch


def rmsnorm_forward(y: DeviceArray, rstd: DeviceArray, x: DeviceArray, w: DeviceArray, eps: float = 1e-5) -> None:
    """x [N, C], w [C] -> y [N, C]; rstd [N] is kept for the backward pass."""
    N, C = x.shape
    block = row_tile(C)
    launch(_forward, (cdiv(N, block["rows"]),), y, rstd, x, w, eps, N, C, **block)


def rmsnorm_backward(
    dresidual: DeviceArray, dw: DeviceArray, dy: DeviceArray, x: DeviceArray, w: DeviceArray, rstd: DeviceArray
) -> None:
    """dy [N, C]; dresidual [N, C] and dw [C] are added to: x is the residual stream, which has a gradient already."""
    N, C = x.shape
    block = row_tile(C)
    programs = min(cdiv(N, block["rows"]), PROGRAMS)
    parts = scratch("norm gradients", programs, C, dtype=np.float32)
    launch(_backward, (programs,), dresidual, parts, dy, x, w, rstd, N, C, **block)
    add_rows(dw, parts)


@triton.jit
def _forward(y, rstd, x, w, eps, N, C, rows: tl.constexpr, columns: tl.constexpr):
    row, column = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, columns)
    at = row.to(tl.int64)[:, None] * C + column[None, :]
    inside = (row < N)[:, None] & (column < C)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(value * value, 1) / C + eps)
    weight = tl.load(w + column, mask=column < C, other=0.0)
    tl.store(y + at, (value * scale[:, None] * weight[None, :]).to(y.dtype.element_ty), mask=inside)
    tl.store(rstd + row, scale, mask=row < N)


@triton.jit
def _backward(dresidual, parts, dy, x, w, rstd, N, C, rows: tl.constexpr, columns: tl.constexpr):
    """Program i: every `programs`-th tile of rows; its sums for dw -> parts[i]."""
    program, programs, column = tl.program_id(0), tl.num_programs(0), tl.arange(0, columns)
    in_row = column < C
    weight = tl.load(w + column, mask=in_row, other=0.0)
    dw = tl.zeros((rows, columns), tl.float32)
    for start in range(program * rows, N, programs * rows):
        row = start + tl.arange(0, rows)
        at = row.to(tl.int64)[:, None] * C + column[None, :]
        inside = (row < N)[:, None] & in_row[None, :]
        scale = tl.load(rstd + row, mask=row < N, other=0.0)
        gradient = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        before = tl.load(dresidual + at, mask=inside, other=0.0).to(tl.float32)
        norm = value * scale[:, None]
        dw += gradient * norm
        dnorm = gradient * weight[None, :]
        along = tl.sum(dnorm * norm, 1) / C
        dx = scale[:, None] * (dnorm - norm * along[:, None])
        tl.store(dresidual + at, (before + dx).to(dresidual.dtype.element_ty), mask=inside)
    tl.store(parts + program.to(tl.int64) * C + column, tl.sum(dw, 0), mask=in_row)
