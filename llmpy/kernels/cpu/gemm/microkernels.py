"""The GEMM's parts for this machine, in float32 and bfloat16: micro-kernel, panel layouts, packing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmpy.kernels.cpu.gemm import microkernel_amx, microkernel_vector
from llmpy.kernels.cpu.gemm.packing import Panel, make_packer, make_row_packer
from llmpy.kernels.cpu.jit.compile import helper
from llmpy.kernels.cpu.jit.isa import ISA


@dataclass(frozen=True)
class Products:
    """A tile of MR x NR and how to feed it. `step` is what the depth of a panel is a multiple of, `item` the bytes of a
    number in a panel.

    tile(depth, a, b, c, ldc, ending) multiplies panels; pack_a and pack_b(panel, source, stride, rows, depth, along,
    wide) make them; stream_b does it past the caches; pack_b_rows(panel, source, stride, depth) has all NR rows in
    float32. A thread calls begin() before its first tile and end() after its
    last.
    """

    MR: int
    NR: int
    step: int
    item: int
    tile: Any
    pack_a: Any
    pack_b: Any
    stream_b: Any
    pack_b_rows: Any
    begin: Any
    end: Any

    def padded(self, depth: int) -> int:
        """The depth of the panel that holds so much."""
        return -(-depth // self.step) * self.step


@helper
def _nothing():
    pass


def _make(
    MR: int, NR: int, tile: Any, panel_a: Panel, panel_b: Panel, begin: Callable[[], None], end: Callable[[], None]
) -> Products:
    step, width = max(panel_a.step, panel_b.step), ISA.tile.width
    pack_a, pack_b = make_packer(MR, panel_a, step, width), make_packer(NR, panel_b, step, width)
    stream_b = make_packer(NR, panel_b, step, width, stream=True)
    pack_b_rows = make_row_packer(NR, panel_b, step, width)
    return Products(MR, NR, step, panel_b.bytes, tile, pack_a, pack_b, stream_b, pack_b_rows, begin, end)


def _vectors(pairs: bool) -> Products:
    panel = Panel.PAIRS if pairs else Panel.FLOATS
    tile = microkernel_vector.make_tile(ISA.tile, pairs)
    return _make(ISA.tile.rows, ISA.tile.columns, tile, panel, panel, _nothing, _nothing)


def _matrix_tiles(prefix: str) -> Products:
    tile, begin, end = (
        microkernel_amx.make_tile(prefix),
        microkernel_amx.make_begin(prefix),
        microkernel_amx.make_end(prefix),
    )
    return _make(microkernel_amx.SIDE, microkernel_amx.SIDE, tile, Panel.ROWS, Panel.PAIRS, begin, end)


def _bfloat16() -> Products:
    match ISA.bfloat16:
        case "matrix":
            return _matrix_tiles("llvm.x86.")
        case "emulated matrix":
            from llmpy.kernels.cpu.gemm import amx_emulation

            return _matrix_tiles(amx_emulation.PREFIX)
        case kind:
            return _vectors(kind == "pairs")


FLOAT32 = _vectors(pairs=False)
BFLOAT16 = _bfloat16()
