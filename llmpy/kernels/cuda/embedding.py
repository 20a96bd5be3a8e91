"""Token and position embedding, and its gradient: the rows of a token are summed in their order, after a sort that
tells where they are (primitives/sort_tokens.py)."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.primitives.reduce import add_rows
from llmpy.kernels.cuda.primitives.row_blocks import row_tile
from llmpy.kernels.cuda.primitives.sort_tokens import order_of
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch, power_of_2
from llmpy.kernels.cuda.runtime.workspace import scratch

COLUMNS = 8192 if INTERPRETED else 1024  # at most, to a program
JOINED = 8192 if INTERPRETED else 256  # columns to a program that joins chunks
ROWS = 32  # that a program of the backward pass sums, one after the other
CHUNKS = 8  # at a time, of those that belong to one token


def embedding_forward(
    x: DeviceArray, tokens: DeviceArray, wte: DeviceArray, wpe: DeviceArray | None = None, start: int = 0
) -> None:
    """tokens int32 [B, T], wte [V, C], wpe [maxT, C] -> x [B, T, C]; `start` is the position of the first token."""
    B, T, C = x.shape
    block = row_tile(min(C, COLUMNS))
    grid = cdiv(B * T, block["rows"]), cdiv(C, block["columns"])
    positions = wpe is not None
    arguments = x, tokens, wte, wpe if positions else wte, B * T, T, C, tokens.strides[0], start
    launch(_forward, grid, *arguments, positions=positions, **block)


def embedding_backward(dwte: DeviceArray, dwpe: DeviceArray | None, dx: DeviceArray, tokens: DeviceArray) -> None:
    """dx [B, T, C], tokens [B, T]; dwte [V, C] and dwpe [maxT, C], or None, are accumulated in the order of the rows.

    The host does not wait for the device: only the device reads the tokens.
    """
    B, T, C = dx.shape
    N, chunks = B * T, cdiv(B * T, ROWS)
    order, sorted_tokens = order_of(tokens)
    parts = scratch("embedding parts", chunks, 2, C, dtype=np.float32)
    columns = min(power_of_2(C), COLUMNS)
    grid, options = (chunks, cdiv(C, columns)), {"rows": ROWS, "columns": columns, "num_warps": 4}
    launch(_sum_chunk, grid, dwte, parts, dx, order, sorted_tokens, N, C, **options)
    grid, options = (chunks, cdiv(C, JOINED)), {"rows": ROWS, "columns": JOINED, "chunks": CHUNKS, "num_warps": 4}
    launch(_join_chunks, grid, dwte, parts, sorted_tokens, N, C, **options)
    if dwpe is not None:
        add_rows(dwpe[:T].reshape(-1), dx.reshape(B, T * C))


@triton.jit(do_not_specialize=["start"])
def _forward(
    x, tokens, wte, wpe, N, T, C, token_stride, start,
    positions: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0) * rows + tl.arange(0, rows), tl.program_id(1) * columns + tl.arange(0, columns)
    in_rows, inside = row < N, (row < N)[:, None] & (column < C)[None, :]
    b, t = row // T, row % T
    token = tl.load(tokens + b.to(tl.int64) * token_stride + t, mask=in_rows, other=0).to(tl.int64)
    value = tl.load(wte + token[:, None] * C + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if positions:
        at = (start + t).to(tl.int64)[:, None] * C + column[None, :]
        value += tl.load(wpe + at, mask=inside, other=0.0).to(tl.float32)
    place = x + row.to(tl.int64)[:, None] * C + column[None, :]
    tl.store(place, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _sum_chunk(dwte, parts, dx, order, sorted_tokens, N, C, rows: tl.constexpr, columns: tl.constexpr):
    """Program i adds up `rows` rows of dx in the order of their tokens, from i * rows on.

    If all rows of a token are in the chunk, its sum is final. The sum of a token that began in an earlier chunk goes to
    parts[i, 0], the sum of a token that continues in the next chunk to parts[i, 1].
    """
    chunk = tl.program_id(0)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = column < C
    first = chunk * rows
    last = tl.minimum(first + rows, N) - 1
    before = tl.load(sorted_tokens + first - 1, mask=first > 0, other=-1)
    after = tl.load(sorted_tokens + last + 1, mask=last + 1 < N, other=-1)
    token = tl.load(sorted_tokens + first)
    following = tl.load(dx + tl.load(order + first).to(tl.int64) * C + column, mask=inside, other=0.0)
    total = tl.zeros((columns,), tl.float32)
    for at in range(first, last + 1):
        total += following.to(tl.float32)
        ahead = tl.minimum(at + 1, last)  # asked for before the sum of this row may have to be written
        following = tl.load(dx + tl.load(order + ahead).to(tl.int64) * C + column, mask=inside, other=0.0)
        next_token = tl.load(sorted_tokens + ahead)
        if (next_token != token) | (at == last):
            if token == before:
                tl.store(parts + 2 * chunk.to(tl.int64) * C + column, total, mask=inside)
            elif (at == last) & (token == after):
                tl.store(parts + (2 * chunk.to(tl.int64) + 1) * C + column, total, mask=inside)
            else:
                place = dwte + token.to(tl.int64) * C + column
                tl.store(place, tl.load(place, mask=inside, other=0.0) + total, mask=inside)
            total = tl.zeros((columns,), tl.float32)
        token = next_token


@triton.jit
def _join_chunks(
    dwte, parts, sorted_tokens, N, C, rows: tl.constexpr, chunks: tl.constexpr, columns: tl.constexpr
):  # fmt: skip
    """Program i: if the last token of chunk i begins there and continues, computes its sum over all chunks."""
    chunk = tl.program_id(0)
    first, next_first = chunk * rows, (chunk + 1) * rows
    before = tl.load(sorted_tokens + first - 1, mask=first > 0, other=-1)
    token = tl.load(sorted_tokens + next_first - 1, mask=next_first < N, other=-1)
    after = tl.load(sorted_tokens + next_first, mask=next_first < N, other=-2)
    if (token == after) & (token != before):
        column = tl.program_id(1) * columns + tl.arange(0, columns)
        inside = column < C
        total = tl.load(parts + (2 * chunk.to(tl.int64) + 1) * C + column, mask=inside, other=0.0)
        ahead = chunk + 1 + tl.arange(0, chunks)
        same = tl.load(sorted_tokens + ahead * rows, mask=ahead * rows < N, other=-1) == token
        while tl.sum(same.to(tl.int32), 0) > 0:
            at = 2 * ahead.to(tl.int64)[:, None] * C + column[None, :]
            total += tl.sum(tl.load(parts + at, mask=same[:, None] & inside[None, :], other=0.0), 0)
            ahead += chunks
            same = tl.load(sorted_tokens + ahead * rows, mask=ahead * rows < N, other=-1) == token
        place = dwte + token.to(tl.int64) * C + column
        tl.store(place, tl.load(place, mask=inside, other=0.0) + total, mask=inside)
