"""Panels: the order in which a micro-kernel reads its operands, front to back, so that every load is the next one.

A panel holds `R` rows of an operand (R = a tile's rows for A, its columns for B), depth first: panel[k * R + r]. Rows
that the matrix does not have are zeros, so that edges need no code in the innermost loop.
"""

from __future__ import annotations

from typing import Any

from llmpy.kernels.cpu.compile import helper
from llmpy.kernels.cpu.microkernel import load_float, make_copy, make_transpose, store_float


def make_packer(R: int, width: int) -> Any:
    """pack(panel, source, stride, rows, depth, along_depth) for panels of R rows on a machine with vectors of `width`
    floats."""
    block = min(width, R & -R)  # the largest power of two that divides R
    transpose, copy = make_transpose(block), make_copy(R, width)

    @helper
    def pack(panel, source, stride, rows, depth, along_depth):
        """rows <= R rows of `depth` values at the address `source` -> `panel`.

        along_depth: a row lies along memory, rows are `stride` floats apart; otherwise a column of R values lies along
        memory.
        """
        k = 0
        if rows == R and along_depth:
            while k + block <= depth:
                for r in range(0, R, block):
                    transpose(source + (r * stride + k) * 4, stride, panel + (k * R + r) * 4, R)
                k += block
        elif rows == R:
            for k_row in range(depth):
                copy(source + k_row * stride * 4, panel + k_row * R * 4)
            k = depth
        row_step, depth_step = (stride, 1) if along_depth else (1, stride)
        while k < depth:
            for r in range(rows):
                store_float(panel + (k * R + r) * 4, load_float(source + (r * row_step + k * depth_step) * 4))
            for r in range(rows, R):
                store_float(panel + (k * R + r) * 4, 0.0)
            k += 1

    return pack
