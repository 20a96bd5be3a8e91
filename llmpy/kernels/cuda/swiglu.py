"""SwiGLU (Shazeer 2020): y = silu(gate) * up. Bound by memory: the backward pass recomputes y from gate and up, which
costs less than reading y."""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.primitives.row_blocks import row_tile
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.launch import cdiv, launch

COLUMNS = 2048  # at most, to a program


def swiglu_forward(y: DeviceArray, gateup: DeviceArray, up: DeviceArray | None = None) -> None:
    """gateup [N, 2H], or gate and up [N, H] apart -> y [N, H]."""
    N, H = y.shape
    gate, up = (gateup[:, :H], gateup[:, H:]) if up is None else (gateup, up)
    block = row_tile(min(H, COLUMNS))
    launch(_forward, _grid(N, H, block), y, gate, up, N, H, gate.strides[0], up.strides[0], **block)


def swiglu_backward(dgateup: DeviceArray, y: DeviceArray, dy: DeviceArray, gateup: DeviceArray) -> None:
    """dy [N, H] -> dgateup [N, 2H], recomputes the output y [N, H]; dgateup may be gateup, and y may be dy."""
    N, H = y.shape
    block = row_tile(min(H, COLUMNS))
    launch(_backward, _grid(N, H, block), dgateup, y, dy, gateup, N, H, **block)


@triton.jit
def _sigmoid(x):
    """The sigmoid of float32 x, in a form that cannot overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _place(N, H, rows: tl.constexpr, columns: tl.constexpr):
    """The rows [rows, 1] and columns [1, columns] of this program, and a mask of those that exist."""
    row = (tl.program_id(0) * rows + tl.arange(0, rows)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * columns + tl.arange(0, columns))[None, :]
    return row, column, (row < N) & (column < H)


@triton.jit
def _forward(y, gate, up, N, H, gate_stride, up_stride, rows: tl.constexpr, columns: tl.constexpr):
    row, column, inside = _place(N, H, rows, columns)
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * H + column, (g * _sigmoid(g) * u).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dgateup, y, dy, gateup, N, H, rows: tl.constexpr, columns: tl.constexpr):
    row, column, inside = _place(N, H, rows, columns)
    at_gate, at_y = row * (2 * H) + column, row * H + column
    g = tl.load(gateup + at_gate, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gateup + at_gate + H, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + at_y, mask=inside, other=0.0).to(tl.float32)
    sigmoid = _sigmoid(g)
    silu = g * sigmoid
    dgate = gradient * u * sigmoid * (1.0 + g * (1.0 - sigmoid))
    tl.store(dgateup + at_gate, dgate.to(dgateup.dtype.element_ty), mask=inside)
    tl.store(dgateup + at_gate + H, (gradient * silu).to(dgateup.dtype.element_ty), mask=inside)
    tl.store(y + at_y, (silu * u).to(y.dtype.element_ty), mask=inside)


def _grid(N: int, H: int, block: dict[str, int]) -> tuple[int, int]:
    return cdiv(N, block["rows"]), cdiv(H, block["columns"])
