"""Dot products of rows of a weight, in whatever numbers it is stored, with a few vectors: what decoding spends its
time on.

A weight is read once, row by row, where it lies: nothing is packed, and no number of it is ever written out as another
kind. The vectors are brought into the form that its kind is multiplied by, once for all rows (decode_phases.py):
float32; bfloat16 where the processor multiplies it in pairs; or bytes with a scale for every 32 of them, so that a
quantized weight meets them in whole numbers (vpdpbusd, four products to a lane), as llama.cpp does it.

That instruction takes unsigned bytes from one side. Weights are that side: q + bias, with bias times the sum of the
vector's four bytes taken off beforehand, in the number that the products are added to.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.decode.gemv_float import FloatDots, PairDots, first_lanes, load_at, read_floats, repeat
from llmpy.kernels.cpu.decode.gemv_int8 import ByteDots
from llmpy.kernels.cpu.jit.compile import entry
from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.kernels.cpu.jit.llvm_ir import F32, I32, I64, broadcast, call, declare, define

PAIRS = ISA.bfloat16 == "pairs"

# Element types by GGUF's code, which is `BlockType.code`.
KINDS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0", 12: "Q4_K", 14: "Q6_K", 30: "BF16"}
FLOATS, HALVES, BYTES = 1, 2, 4  # the forms of a vector


def form_of(kind: str) -> int:
    """The form that a vector must have to meet weights of this kind."""
    if kind in ("F32", "F16") or (kind == "BF16" and not PAIRS):
        return FLOATS
    return HALVES if kind == "BF16" else BYTES


@intrinsic
def products(typingctx, kind, w, row_bytes, rows, x, x_bytes, vectors, depth, y, y_bytes, add):
    """y [vectors, rows] = or += (with `add` not 0) the products of rows of a weight, `row_bytes` apart, with vectors in
    the form that its kind, a code of KINDS, wants; vectors are `x_bytes` apart, their results, float32, `y_bytes`."""
    number, address = types.int64, types.uintp
    kinds = (number, address, number, number, address, number, number, number, address, number, number)

    def choose(build, args):
        kind, *rest = args
        end = build.append_basic_block("end")
        choice = build.switch(kind, end)
        for code, title in KINDS.items():
            choice.add_case(I64(code), block := build.append_basic_block(title))
            build.position_at_end(block)
            emit = partial(_emit_products, title)
            build.call(define(build, f"llmpy_products_{title}", [I64] * 10, emit), rest)
            build.branch(end)
        build.position_at_end(end)

    return types.void(*kinds), call("llmpy_products", [I64] * 11, choose)


def _emit_products(title: str, build: ir.IRBuilder, args: Any) -> None:
    """Tile after tile. Four vectors at a time meet four rows that follow one another, rows outside, so that they stay
    in the nearest cache while all vectors pass. Few vectors meet four rows a quarter of all apart: memory is read
    fastest in a few long streams."""
    w, row_bytes, rows, x, x_bytes, vectors, depth, y, y_bytes, add = args
    emitter = {FLOATS: FloatDots, HALVES: PairDots, BYTES: ByteDots}[form_of(title)]

    def tile(row, R, apart, vector, S):
        def emit(inner, args):
            emitter(inner, args, title, R, S).emit()

        function = define(build, f"llmpy_dots_{title}_{R}x{S}", [I64] * 9, emit)
        at = [build.add(w, build.mul(row, row_bytes)), build.add(x, build.mul(vector, x_bytes))]
        out = build.add(y, build.add(build.mul(vector, y_bytes), build.shl(row, I64(2))))
        far = build.mul(apart, row_bytes), build.shl(apart, I64(2))
        build.call(function, [at[0], far[0], at[1], x_bytes, depth, out, far[1], y_bytes, add])

    def over_single_vectors(R, apart, first):
        return lambda row: repeat(build, first, vectors, 1, lambda vector: tile(row, R, apart, vector, 1))

    def over_vectors(row):
        repeat(build, I64(0), vectors, 4, lambda vector: tile(row, 4, I64(1), vector, 4))
        over_single_vectors(4, I64(1), build.and_(vectors, I64(~3)))(row)

    few = build.icmp_signed("<", vectors, I64(4))
    quarter = build.lshr(rows, I64(2))
    repeat(build, I64(0), build.select(few, quarter, I64(0)), 1, over_single_vectors(4, quarter, I64(0)))
    repeat(build, I64(0), build.select(few, I64(0), rows), 4, over_vectors)
    repeat(build, build.and_(rows, I64(~3)), rows, 1, over_single_vectors(1, I64(0), I64(0)))


@intrinsic
def weighted_sum(typingctx, kind, values, stride, weights, count, y, depth):
    """y float32 [depth] = the sum of `count` vectors, `stride` bytes apart, each times its float32 weight.

    The vectors are float32 or bfloat16 (`kind`).
    """
    number, address = types.int64, types.uintp

    def choose(build, args):
        kind, *rest = args
        is_float = build.icmp_signed("==", kind, I64(0))
        with build.if_else(is_float) as (then, otherwise):
            for branch, title in ((then, "F32"), (otherwise, "BF16")):
                with branch:
                    emit = partial(_emit_weighted_sum, title)
                    build.call(define(build, f"llmpy_weighted_sum_{title}", [I64] * 6, emit), rest)

    kinds = (number, address, number, address, number, address, number)
    return types.void(*kinds), call("llmpy_weighted_sum", [I64] * 7, choose)


def _emit_weighted_sum(title: str, build: ir.IRBuilder, args: Any) -> None:
    """Some channels at a time, their sums in registers while the vectors pass."""
    values, stride, weights, count, y, depth = args
    size, width = 4 if title == "F32" else 2, ISA.tile.width
    VEC = ir.VectorType(F32, width)
    fma = declare(build, f"llvm.fmuladd.v{width}f32", ir.FunctionType(VEC, [VEC] * 3))

    def channels(vectors, first, mask=None):
        together = 4 // vectors  # four sums grow at a time: one alone would wait for itself
        sums = [[build.alloca(VEC) for _ in range(vectors)] for _ in range(together)]
        for total in chain(*sums):
            build.store(ir.Constant(VEC, None), total)
        start = build.add(values, build.mul(first, I64(size)))

        def one(t, group):
            share = broadcast(build, load_at(build, weights, build.shl(t, I64(2)), F32), width)
            row = build.add(start, build.mul(t, stride))
            for i, total in enumerate(group):
                numbers = read_floats(build, title, row, I64(i * width * size), width, mask)
                build.store(build.call(fma, [share, numbers, build.load(total)]), total)

        def several(t):
            for i, group in enumerate(sums):
                one(build.add(t, I64(i)), group)

        repeat(build, I64(0), count, together, several)
        repeat(build, build.and_(count, I64(~(together - 1))), count, 1, lambda t: one(t, sums[0]))
        for i in range(vectors):
            whole = build.load(sums[0][i])
            for group in sums[1:]:
                whole = build.fadd(whole, build.load(group[i]))
            place = build.add(y, build.shl(build.add(first, I64(i * width)), I64(2)))
            pointer = build.inttoptr(place, VEC.as_pointer())
            if mask is None:
                build.store(whole, pointer, align=4)
            else:
                kinds = [VEC, VEC.as_pointer(), I32, mask.type]
                write = declare(build, f"llvm.masked.store.v{width}f32.p0", ir.FunctionType(ir.VoidType(), kinds))
                build.call(write, [whole, pointer, I32(4), mask])

    wide = 4 * width
    repeat(build, I64(0), depth, wide, lambda c: channels(4, c))
    repeat(build, build.and_(depth, I64(~(wide - 1))), depth, width, lambda c: channels(1, c))
    left = build.and_(depth, I64(width - 1))
    with build.if_then(build.icmp_signed(">", left, I64(0))):
        channels(1, build.sub(depth, left), first_lanes(build, left, width))


# What is emitted is compiled once, by itself, and called through its address: linked into every kernel that calls it,
# LLVM would work through it again and again.
@entry(11)
def products_entry(kind, w, row_bytes, rows, x, x_bytes, vectors, depth, y, y_bytes, add):
    products(kind, w, row_bytes, rows, x, x_bytes, vectors, depth, y, y_bytes, add)


@entry(7)
def weighted_sum_entry(kind, values, stride, weights, count, y, depth):
    weighted_sum(kind, values, stride, weights, count, y, depth)


@intrinsic
def call_entry(typingctx, address, arguments):
    """Call an entry at its address with a tuple of integers."""

    def codegen(context, build, sig, args):
        values = [build.extract_value(args[1], i) for i in range(len(sig.args[1]))]
        function = ir.FunctionType(ir.VoidType(), [I64] * len(values)).as_pointer()
        build.call(build.inttoptr(args[0], function), values)
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, len(arguments))), codegen
