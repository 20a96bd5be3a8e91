"""The innermost loop of every matrix product, emitted as LLVM IR: what a C library would write in assembly.

C[rows, columns] (+)= A^T B over packed panels, all sums in registers: in float32, and in bfloat16 with the instruction
that multiplies pairs (vdpbf16ps). The tiles of AMX are in amx.py.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.jit.isa import TileShape
from llmpy.kernels.cpu.jit.llvm_ir import (
    BF16,
    F32,
    I64,
    broadcast,
    call,
    declare,
    load,
    prefetch_line,
    store,
    stream_past_caches,
)

# How a tile ends: it is written to C; added to C; or written past the caches, for what is not read again soon, which
# spares memory the read of what is overwritten: C and its rows must begin at whole vectors.
STORE, ADD, STREAM = 0, 1, 2


def make_tile(shape: TileShape, pairs: bool = False) -> Any:
    """The micro-kernel of a tile shape: tile(depth, a, b, c, ldc, ending), depth >= 1.

    a [depth, rows], b [depth, columns], c float32 [rows, columns] with rows `ldc` apart. Endings: see STORE, ADD and
    STREAM. `pairs`: a and b are bfloat16, two of the depth side by side, a [depth / 2, rows, 2]; depth is even.
    """

    @intrinsic
    def tile(typingctx, depth, a, b, c, ldc, ending):
        signature = types.void(types.int64, types.uintp, types.uintp, types.uintp, types.int64, types.int64)
        name = f"llmpy_tile_{shape.rows}x{shape.vectors}x{shape.width}{'_pairs' if pairs else ''}"
        return signature, call(name, [I64] * 6, lambda build, args: emit_tile(shape, build, args, pairs))

    return tile


def emit_tile(shape: TileShape, build: ir.IRBuilder, args: Any, pairs: bool = False) -> None:
    """The body of a tile: a loop over the depth with every cell of C in a register, then one store or addition to
    memory. A step of the loop reads 4-byte words: numbers in float32, or pairs of bfloat16."""
    depth, a, b, c, ldc, ending = args
    VEC = ir.VectorType(F32, shape.width)
    cells = [(i, j) for i in range(shape.rows) for j in range(shape.vectors)]
    steps = build.lshr(depth, I64(1)) if pairs else depth
    multiply_add = _pair_product(build, shape.width) if pairs else _product(build, VEC)
    names = ("fetch", "depth", "store", "add", "stream", "end")
    fetch, loop, store_, add, stream, end = (build.append_basic_block(n) for n in names)
    entry = build.block
    build.cbranch(build.icmp_signed("==", ending, I64(ADD)), fetch, loop)
    build.position_at_end(fetch)  # what will be added to comes out of memory while the sums are made
    for i in range(shape.rows):
        row = build.add(c, build.mul(ldc, I64(i * 4)))
        for line in range(0, shape.columns * 4, 64):
            prefetch_line(build, build.add(row, I64(line)), write=True)
    build.branch(loop)

    build.position_at_end(loop)
    k = build.phi(I64)
    sums = {cell: build.phi(VEC) for cell in cells}
    panel_a = build.add(a, build.mul(k, I64(shape.rows * 4)))
    panel_b = build.add(b, build.mul(k, I64(shape.columns * 4)))
    columns = [load(build, panel_b, j * shape.width, VEC) for j in range(shape.vectors)]
    grown = {}
    for i in range(shape.rows):
        value = broadcast(build, load(build, panel_a, i, F32), shape.width)
        for j in range(shape.vectors):
            grown[i, j] = multiply_add(sums[i, j], value, columns[j])
    k_next = build.add(k, I64(1))
    for block in (entry, fetch):
        k.add_incoming(I64(0), block)
        for cell in cells:
            sums[cell].add_incoming(ir.Constant(VEC, None), block)
    k.add_incoming(k_next, loop)
    for cell in cells:
        sums[cell].add_incoming(grown[cell], loop)
    done = build.append_basic_block("done")
    build.cbranch(build.icmp_signed("<", k_next, steps), loop, done)

    build.position_at_end(done)
    choice = build.switch(ending, store_)
    choice.add_case(I64(ADD), add)
    choice.add_case(I64(STREAM), stream)
    for block in (store_, add, stream):
        build.position_at_end(block)
        for i, j in cells:
            row, value = build.add(c, build.mul(ldc, I64(i * 4))), grown[i, j]
            if block is add:
                value = build.fadd(value, load(build, row, j * shape.width, VEC))
            stored = store(build, row, j * shape.width, value)
            if block is stream:
                stream_past_caches(build, stored, shape.width * 4)
        build.branch(end)
    build.position_at_end(end)


def _product(build, VEC):
    # fmuladd: one instruction where the processor has it, two where it has not.
    fma = declare(build, f"llvm.fmuladd.v{VEC.count}f32", ir.FunctionType(VEC, [VEC] * 3))
    return lambda total, x, y: build.call(fma, [x, y, total])


def _pair_product(build, width):
    """total + x0 y0 + x1 y1 in every lane: the words of x and y are pairs of bfloat16."""
    VEC, PAIRS = ir.VectorType(F32, width), ir.VectorType(BF16, 2 * width)
    dot = declare(build, f"llvm.x86.avx512bf16.dpbf16ps.{width * 32}", ir.FunctionType(VEC, [VEC, PAIRS, PAIRS]))
    return lambda total, x, y: build.call(dot, [total, build.bitcast(x, PAIRS), build.bitcast(y, PAIRS)])
