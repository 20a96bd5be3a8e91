"""Panels: the order in which a micro-kernel reads its operands, front to back, so that every load is the next one.

A panel holds `R` rows of an operand (R = a tile's rows for A, its columns for B). Rows that the matrix does not have,
and what is missing to a whole step of the depth, are zeros, so that edges need no code in the innermost loop.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from llmpy.kernels.cpu.gemm.packing_ir import Source, make_copy, make_transpose
from llmpy.kernels.cpu.jit.compile import helper
from llmpy.kernels.cpu.jit.intrinsics import load_bfloat16, load_float, store_bfloat16, store_float


class Panel(Enum):
    """The order of the numbers in a panel."""

    FLOATS = "float32, [depth, R]"
    PAIRS = "bfloat16, [depth / 2, R, 2]"
    ROWS = "bfloat16, [depth / 32, R, 32]: a matrix tile of AMX, for A"

    @property
    def step(self) -> int:
        """Numbers of the depth that a micro-kernel takes at once."""
        return {Panel.FLOATS: 1, Panel.PAIRS: 2, Panel.ROWS: 32}[self]

    @property
    def bytes(self) -> int:
        """Bytes of an element."""
        return 4 if self is Panel.FLOATS else 2


def make_packer(R: int, panel: Panel, step: int, width: int, stream: bool = False) -> Any:
    """pack(panel, source, stride, rows, depth, along, wide) for panels of R rows, as deep as a multiple of `step`, on a
    machine with vectors of `width` words. `stream`: past the caches; panels then begin at whole vectors."""
    pack_float32, pack_bfloat16 = (_make_packer(R, panel, step, width, wide, stream) for wide in (True, False))

    @helper
    def pack(panel, source, stride, rows, depth, along, wide):
        """rows <= R rows of `depth` numbers at the address `source` -> `panel`.

        along: a row lies along memory, rows are `stride` numbers apart; otherwise a column of R values lies along
        memory. wide: the source is float32, not bfloat16.
        """
        if wide:
            pack_float32(panel, source, stride, rows, depth, along)
        else:
            pack_bfloat16(panel, source, stride, rows, depth, along)

    return pack


def make_row_packer(R: int, panel: Panel, step: int, width: int) -> Any:
    """pack(panel, source, stride, depth) as above, of R rows of float32 that lie along memory: for what was made so in
    the cache, where a smaller function will do."""
    pack_float32 = _make_packer(R, panel, step, width, wide=True, stream=False)

    @helper
    def pack(panel, source, stride, depth):
        pack_float32(panel, source, stride, R, depth, True)

    return pack


def _make_packer(R: int, panel: Panel, step: int, width: int, wide: bool, stream: bool) -> Any:
    item = 4 if wide else 2  # bytes of a number in the matrix
    if panel is Panel.FLOATS:
        whole = _make_floats(R, width, Source.FLOATS if wide else Source.WIDENED, item, stream)
    else:
        along_source = Source.ROUNDED_PAIRS if wide else Source.PAIRS
        across_source = Source.ROUNDED_ROW_PAIRS if wide else Source.ROW_PAIRS
        make = _make_pairs if panel is Panel.PAIRS else _make_rows
        whole = make(R, width, along_source, across_source, item, stream)
    cell, get = _make_cell(R, panel), load_float if wide else load_bfloat16
    put = store_float if panel is Panel.FLOATS else store_bfloat16

    @helper
    def pack(panel, source, stride, rows, depth, along):
        first = whole(panel, source, stride, depth, along) if rows == R else 0
        row_step, depth_step = (stride, 1) if along else (1, stride)
        for k in range(first, (depth + step - 1) // step * step):
            for r in range(R):
                inside = r < rows and k < depth
                value = get(source + (r * row_step + k * depth_step) * item) if inside else 0.0
                put(panel + cell(r, k), value)

    return pack


def _make_cell(R: int, panel: Panel) -> Any:
    """cell(r, k): the bytes from a panel's start to the number of row r at depth k."""
    if panel is Panel.FLOATS:

        @helper
        def cell(r, k):
            return (k * R + r) * 4
    elif panel is Panel.PAIRS:

        @helper
        def cell(r, k):
            return (k // 2 * R + r) * 4 + k % 2 * 2
    else:

        @helper
        def cell(r, k):
            return (k // 32 * R + r) * 64 + k % 32 * 2

    return cell


# What follows packs a panel with all its rows as deep as whole vectors go, and returns how deep that was.


def _make_floats(R: int, width: int, source: Source, item: int, stream: bool) -> Any:
    block = min(width, R & -R)  # the largest power of two that divides R
    transpose, copy = make_transpose(block, source, stream), make_copy(R, width, source, stream)

    @helper
    def whole(panel, source, stride, depth, along):
        if not along:
            for k in range(depth):
                copy(source + k * stride * item, 0, panel + k * R * 4)
            return depth
        for k in range(0, depth - block + 1, block):
            for r in range(0, R, block):
                transpose(source + (r * stride + k) * item, stride * item, panel + (k * R + r) * 4, R)
        return depth // block * block

    return whole


def _make_pairs(R: int, width: int, along_source: Source, across_source: Source, item: int, stream: bool) -> Any:
    block = min(width, R & -R)
    transpose, copy = make_transpose(block, along_source, stream), make_copy(R, width, across_source, stream)

    @helper
    def whole(panel, source, stride, depth, along):
        if not along:
            for k in range(0, depth - 1, 2):
                copy(source + k * stride * item, stride * item, panel + k * R * 2)
            return depth // 2 * 2
        for k in range(0, depth - 2 * block + 1, 2 * block):
            for r in range(0, R, block):
                transpose(source + (r * stride + k) * item, stride * item, panel + (k // 2 * R + r) * 4, R)
        return depth // (2 * block) * (2 * block)

    return whole


def _make_rows(R: int, width: int, along_source: Source, across_source: Source, item: int, stream: bool) -> Any:
    transpose, copy = make_transpose(16, across_source, stream), make_copy(16, width, along_source, stream)

    @helper
    def whole(panel, source, stride, depth, along):
        for k in range(0, depth - 31, 32):
            if along:
                for r in range(R):
                    copy(source + (r * stride + k) * item, 0, panel + (k * R + r * 32) * 2)
            else:
                for r in range(0, R, 16):
                    transpose(source + (k * stride + r) * item, stride * item, panel + (k * R + r * 32) * 2, 16)
        return depth // 32 * 32

    return whole
