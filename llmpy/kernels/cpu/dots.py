"""Dot products of rows of a weight, in whatever numbers it is stored, with a few vectors: what decoding spends its
time on.

A weight is read once, row by row, where it lies: nothing is packed, and no number of it is ever written out as another
kind. The vectors are brought into the form that its kind is multiplied by (`prepare`, once for all rows): float32;
bfloat16 where the processor multiplies it in pairs; or bytes with a scale for every 32 of them, so that a quantized
weight meets them in whole numbers (vpdpbusd, four products to a lane), as llama.cpp does it.

That instruction takes unsigned bytes from one side. Weights are that side: q + bias, with bias times the sum of the
vector's four bytes taken off beforehand, in the number that the products are added to.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.compile import entry
from llmpy.kernels.cpu.emit import (
    BF16,
    F32,
    I8,
    I16,
    I32,
    I64,
    broadcast,
    call,
    declare,
    define,
    lanes,
    prefetch_line,
    splat,
    widened,
)
from llmpy.kernels.cpu.isa import ISA

AHEAD = 2048  # bytes that are asked for before they are read
GROUP = 32  # numbers of a vector in bytes that have one scale
F16 = ir.HalfType()
BYTES_LANES = max(8, ISA.tile.width)  # 32-bit lanes, of four bytes each: one block of 32 or two
PAIRS = ISA.bfloat16 == "pairs"
_FEATURES = binding.get_host_cpu_features()
_VNNI = {16: "avx512vnni", 8: "avxvnni"}.get(ISA.tile.width, "none")
HAS_VNNI = ISA.name != "numpy" and bool(_FEATURES.get(_VNNI) or (_VNNI == "avxvnni" and _FEATURES.get("avx512vnni")))


# Kinds of numbers by the code that GGUF gives them, which is `BlockType.code`.
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
    emitter = {FLOATS: _Floats, HALVES: _Pairs, BYTES: _Bytes}[form_of(title)]

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


# ---- words ---------------------------------------------------------------------------------------------------------


def repeat(build: ir.IRBuilder, start: Any, end: Any, step: int, body: Any) -> None:
    """body(i) for i = start, start + step ... while a whole step fits below the end."""
    entry, head, again, done = build.block, *(build.append_basic_block(n) for n in ("head", "again", "done"))
    build.branch(head)
    build.position_at_end(head)
    i = build.phi(I64)
    i.add_incoming(start, entry)
    following = build.add(i, I64(step))
    build.cbranch(build.icmp_signed("<=", following, end), again, done)
    build.position_at_end(again)
    body(i)
    i.add_incoming(following, build.block)
    build.branch(head)
    build.position_at_end(done)


def load_at(build: ir.IRBuilder, address: Any, offset: Any, kind: Any) -> Any:
    """What lies `offset` bytes (a value or a number) behind an address."""
    if isinstance(offset, int):
        offset = I64(offset)
    return build.load(build.inttoptr(build.add(address, offset), kind.as_pointer()), align=1)


def first_lanes(build: ir.IRBuilder, count: Any, width: int) -> Any:
    """The mask of the first `count` of the lanes."""
    numbers = ir.Constant(ir.VectorType(I32, width), [I32(i) for i in range(width)])
    return build.icmp_signed("<", numbers, broadcast(build, build.trunc(count, I32), width))


def read(build: ir.IRBuilder, address: Any, offset: Any, kind: Any, width: int, mask: Any) -> Any:
    """A vector, of which the lanes outside the mask are 0, and not read."""
    VEC = ir.VectorType(kind, width)
    if mask is None:
        return load_at(build, address, offset, VEC)
    pointer = build.inttoptr(build.add(address, offset), VEC.as_pointer())
    suffix = {F32: "f32", F16: "f16", I16: "i16"}[kind]
    function = ir.FunctionType(VEC, [VEC.as_pointer(), I32, mask.type, VEC])
    masked_load = declare(build, f"llvm.masked.load.v{width}{suffix}.p0", function)
    return build.call(masked_load, [pointer, I32(1), mask, ir.Constant(VEC, None)])


def read_floats(build: ir.IRBuilder, title: str, address: Any, offset: Any, width: int, mask: Any) -> Any:
    """float32, float16 or bfloat16 as float32."""
    if title == "F32":
        return read(build, address, offset, F32, width, mask)
    if title == "F16":
        return build.fpext(read(build, address, offset, F16, width, mask), ir.VectorType(F32, width))
    return widened(build, read(build, address, offset, I16, width, mask), width)


# ---- tiles ---------------------------------------------------------------------------------------------------------


class _Dots:
    """The frame of all kinds: sums in registers, a loop over the depth, and the sums across lanes at the end."""

    lanes: int

    def __init__(self, build: ir.IRBuilder, args: Any, kind: str, rows: int, vectors: int) -> None:
        self.build, self.kind = build, kind
        w, row_bytes, x, x_bytes, self.depth, self.y, self.y_row_bytes, self.y_bytes, self.add = args
        self.rows = [build.add(w, build.mul(row_bytes, I64(i))) for i in range(rows)]
        self.vectors = [build.add(x, build.mul(x_bytes, I64(j))) for j in range(vectors)]
        self.VEC = ir.VectorType(F32, self.lanes)
        self.sums = [[build.alloca(self.VEC) for _ in self.vectors] for _ in self.rows]
        for total in chain(*self.sums):
            build.store(ir.Constant(self.VEC, None), total)

    def at(self, address: Any, offset: Any, kind: Any) -> Any:
        return load_at(self.build, address, offset, kind)

    def fetch(self, address: Any, offset: Any, size: int) -> None:
        """Asks for what lies AHEAD of there, in the rows that come next. A row is too short for the processor to run
        ahead of it by itself."""
        start = self.build.add(self.build.add(address, offset), I64(AHEAD))
        for line in range(0, size, 64):
            prefetch_line(self.build, self.build.add(start, I64(line)))

    def grow(self, row: int, vector: int, x: Any, y: Any) -> None:
        """sum += x y, in every lane"""
        fma = declare(self.build, f"llvm.fmuladd.v{self.lanes}f32", ir.FunctionType(self.VEC, [self.VEC] * 3))
        total = self.sums[row][vector]
        self.build.store(self.build.call(fma, [x, y, self.build.load(total)]), total)

    def add_across(self) -> None:
        """The sums over the lanes of every sum, into y: neighbours are added, of two vectors at a time."""
        build, width = self.build, self.lanes
        totals = [build.load(row[j]) for j in range(len(self.vectors)) for row in self.sums]

        def halve(a: Any, b: Any) -> Any:
            even, odd = lanes(range(0, 2 * width, 2)), lanes(range(1, 2 * width, 2))
            return build.fadd(build.shuffle_vector(a, b, even), build.shuffle_vector(a, b, odd))

        for _ in range(width.bit_length() - 1):
            pairs = [(totals[i], totals[min(i + 1, len(totals) - 1)]) for i in range(0, len(totals), 2)]
            totals = [halve(*pair) for pair in pairs]
        R, adds = len(self.rows), build.icmp_signed("!=", self.add, I64(0))
        for number in range(R * len(self.vectors)):
            offset = build.mul(self.y_row_bytes, I64(number % R))
            offset = build.add(offset, build.mul(self.y_bytes, I64(number // R)))
            pointer = build.inttoptr(build.add(self.y, offset), F32.as_pointer())
            total = build.extract_element(totals[number // width], I32(number % width))
            old = build.select(adds, build.load(pointer), ir.Constant(F32, 0))
            build.store(build.fadd(total, old), pointer)

    def emit(self) -> None:
        self.run()
        self.add_across()

    def run(self) -> None:
        raise NotImplementedError


class _Floats(_Dots):
    """float32, float16 or bfloat16 made float32 on the way, by float32 vectors."""

    lanes = ISA.tile.width
    step = ISA.tile.width  # numbers at a time

    def run(self) -> None:
        build = self.build
        repeat(build, I64(0), self.depth, self.step, lambda k: self.multiply(k, None))
        left = build.and_(self.depth, I64(self.step - 1))
        with build.if_then(build.icmp_signed(">", left, I64(0))):
            self.multiply(build.sub(self.depth, left), first_lanes(build, left, self.step))

    def multiply(self, k: Any, mask: Any) -> None:
        build, size = self.build, 4 if self.kind == "F32" else 2
        xs = [read(build, x, build.mul(k, I64(4)), F32, self.lanes, mask) for x in self.vectors]
        for i, row in enumerate(self.rows):
            numbers = read_floats(build, self.kind, row, build.mul(k, I64(size)), self.lanes, mask)
            if mask is None:
                self.fetch(row, build.mul(k, I64(size)), 64)
            for j, x in enumerate(xs):
                self.grow(i, j, numbers, x)


class _Pairs(_Floats):
    """bfloat16 by bfloat16, two products to a lane (vdpbf16ps). A last odd number stands in a pair with nothing."""

    step = 2 * ISA.tile.width

    def multiply(self, k: Any, mask: Any) -> None:
        build, NUMBERS = self.build, ir.VectorType(BF16, self.step)
        name = f"llvm.x86.avx512bf16.dpbf16ps.{self.lanes * 32}"
        dot = declare(build, name, ir.FunctionType(self.VEC, [self.VEC, NUMBERS, NUMBERS]))

        def numbers(address: Any) -> Any:
            return build.bitcast(read(build, address, build.mul(k, I64(2)), I16, self.step, mask), NUMBERS)

        xs = [numbers(x) for x in self.vectors]
        for i, row in enumerate(self.rows):
            w = numbers(row)
            if mask is None:
                self.fetch(row, build.mul(k, I64(2)), 64)
            for j, x in enumerate(xs):
                total = self.sums[i][j]
                build.store(build.call(dot, [build.load(total), w, x]), total)


class _Bytes(_Dots):
    """Quantized weights by vectors in bytes: [depth] int8, then [depth / 4] int32, minus the sum of each four, then
    [depth / 4] float32, the scale of each four; depth up to a multiple of 64.

    A step is four bytes a lane. Layouts: llmpy/formats/gguf_blocks.py.
    """

    lanes = BYTES_LANES

    def run(self) -> None:
        build = self.build
        padded = build.and_(build.add(self.depth, I64(63)), I64(~63))
        self.minus_sums, self.scales = padded, build.shl(padded, I64(1))
        self.bias = {"Q8_0": 7, "Q4_0": 3, "Q6_K": 5}.get(self.kind)  # its logarithm
        if self.kind in ("Q4_K", "Q6_K"):
            size, run = {"Q4_K": (144, self.super4), "Q6_K": (210, self.super6)}[self.kind]
            repeat(build, I64(0), self.depth, 256, lambda k: run(k, build.mul(build.lshr(k, I64(8)), I64(size))))
            return
        step = 4 * self.lanes
        repeat(build, I64(0), self.depth, step, self.blocks)
        if step > GROUP:  # an odd block is left over: half of the lanes
            whole = build.and_(self.depth, I64(~(step - 1)))
            with build.if_then(build.icmp_signed("<", whole, self.depth)):
                self.lanes = GROUP // 4
                self.blocks(whole)
                self.lanes = step // 4

    # ---- blocks of 32: Q8_0, Q4_0, Q4_1 ----

    def blocks(self, k: Any) -> None:
        """As many blocks as there are lanes for, at number k of the rows."""
        build = self.build
        size = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[self.kind]
        count = 4 * self.lanes // GROUP
        offset = build.mul(build.lshr(k, I64(5)), I64(size))
        for i, row in enumerate(self.rows):
            starts = [build.add(row, build.add(offset, I64(size * block))) for block in range(count)]
            self.fetch(row, offset, 64)
            q = self.quants(starts)
            d = self.halves(starts, 0)
            m = self.halves(starts, 2) if self.kind == "Q4_1" else None
            for j in range(len(self.vectors)):
                self.multiply(i, j, k, q, d, m)

    def quants(self, starts: list[Any]) -> Any:
        """The unsigned bytes of one or two blocks."""
        build = self.build
        if self.kind == "Q8_0":
            values = self.joined([self.at(start, 2, ir.VectorType(I8, 32)) for start in starts])
            return build.xor(values, splat(I8, 4 * self.lanes, 0x80))
        first = 4 if self.kind == "Q4_1" else 2
        packed = [self.at(start, first, ir.VectorType(I8, 16)) for start in starts]
        twice = self.joined([build.shuffle_vector(p, p, lanes([*range(16), *range(16)])) for p in packed])
        # The high halves come down where they are wanted: a shift of 16 bits at a time leaves bits to be masked.
        shifts = ir.Constant(ir.VectorType(I16, 2 * self.lanes), [I16(4 * (i // 8 % 2)) for i in range(2 * self.lanes)])
        shifted = build.lshr(build.bitcast(twice, shifts.type), shifts)
        return build.and_(build.bitcast(shifted, twice.type), splat(I8, 4 * self.lanes, 15))

    def joined(self, parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        return self.build.shuffle_vector(*parts, lanes(range(2 * parts[0].type.count)))

    def halves(self, starts: list[Any], at: int) -> Any:
        """The float16 at byte `at` of every block, as float32 in the lanes of that block."""
        # Broadcast from memory, as whole numbers: one float16 put into a register would wait for what was in it.
        parts = [broadcast(self.build, self.at(start, at, I16), 8) for start in starts]
        joined = self.build.bitcast(self.joined(parts), ir.VectorType(F16, self.lanes))
        return self.build.fpext(joined, ir.VectorType(F32, self.lanes))

    # ---- blocks of 256: Q4_K, Q6_K ----

    def super4(self, k: Any, offset: Any) -> None:
        build, EIGHT = self.build, ir.VectorType(F32, 8)
        for i, row in enumerate(self.rows):
            start = build.add(row, offset)
            self.fetch(row, offset, 144)
            low, middle, high = (self.at(start, at, I32) for at in (4, 8, 12))
            spare = [build.shl(build.and_(build.lshr(x, I32(6)), I32(0x03030303)), I32(4)) for x in (low, middle)]
            scales = build.or_(build.and_(high, I32(0x0F0F0F0F)), spare[0])
            minima = build.or_(build.and_(build.lshr(high, I32(4)), I32(0x0F0F0F0F)), spare[1])
            d, m = (build.fpext(self.at(start, at, F16), F32) for at in (0, 2))
            first = [build.and_(x, I32(0x3F3F3F3F)) for x in (low, middle)]
            eighths = []
            for factor, pair in ((d, (first[0], scales)), (m, (first[1], minima))):
                words = ir.Constant(ir.VectorType(I32, 2), ir.Undefined)
                for n, word in enumerate(pair):
                    words = build.insert_element(words, word, I32(n))
                numbers = build.uitofp(build.bitcast(words, ir.VectorType(I8, 8)), EIGHT)
                eighths.append(build.fmul(numbers, broadcast(build, factor, 8)))
            for step in range(64 // self.lanes):
                numbers = 4 * self.lanes * step
                packed = self.at(start, 16 + numbers // 64 * 32, ir.VectorType(I8, 32))
                halves = [packed, build.lshr(packed, splat(I8, 32, 4))]
                q = self.joined(halves) if self.lanes == 16 else halves[step % 2]
                q = build.and_(q, splat(I8, 4 * self.lanes, 15))
                which = lanes([(numbers + 4 * lane) // 32 for lane in range(self.lanes)])
                d_lanes, m_lanes = (build.shuffle_vector(each, each, which) for each in eighths)
                for j in range(len(self.vectors)):
                    self.multiply(i, j, build.add(k, I64(numbers)), q, d_lanes, m_lanes, minus=True)

    def super6(self, k: Any, offset: Any) -> None:
        build, SIXTEEN = self.build, ir.VectorType(F32, 16)
        for i, row in enumerate(self.rows):
            start = build.add(row, offset)
            self.fetch(row, offset, 210)
            d = build.fpext(self.at(start, 208, F16), F32)
            scales = build.sitofp(self.at(start, 192, ir.VectorType(I8, 16)), SIXTEEN)
            scales = build.fmul(scales, broadcast(build, d, 16))
            for step in range(64 // self.lanes):
                numbers = 4 * self.lanes * step
                parts = [self.sixes(start, numbers + 32 * part) for part in range(self.lanes // 8)]
                which = lanes([(numbers + 4 * lane) // 16 for lane in range(self.lanes)])
                d_lanes = build.shuffle_vector(scales, scales, which)
                for j in range(len(self.vectors)):
                    self.multiply(i, j, build.add(k, I64(numbers)), self.joined(parts), d_lanes, None)

    def sixes(self, start: Any, number: int) -> Any:
        """32 bytes of Q6_K, from this number of its block on: four low bits of a byte, two of another."""
        build, EIGHTS = self.build, ir.VectorType(I8, 32)
        half, quarter = number // 128, number % 128 // 32
        low = self.at(start, 64 * half + 32 * (quarter % 2), EIGHTS)
        low = build.lshr(low, splat(I8, 32, 4)) if quarter >= 2 else build.and_(low, splat(I8, 32, 15))
        high = build.lshr(self.at(start, 128 + 32 * half, EIGHTS), splat(I8, 32, 2 * quarter))
        return build.or_(low, build.shl(build.and_(high, splat(I8, 32, 3)), splat(I8, 32, 4)))

    # ---- products ----

    def multiply(self, row: int, vector: int, k: Any, q: Any, d: Any, m: Any, minus: bool = False) -> None:
        """sum += (d (q - bias) + m) x, or - m, of the step at number k."""
        build, n, x = self.build, self.lanes, self.vectors[vector]
        INTS, FLOATS = ir.VectorType(I32, n), ir.VectorType(F32, n)
        sums = self.at(x, build.add(k, self.minus_sums), INTS)
        start = splat(I32, n, 0) if self.bias is None else build.shl(sums, splat(I32, n, self.bias))
        product = self.byte_products(start, q, self.at(x, k, ir.VectorType(I8, 4 * n)))
        value = build.fmul(build.sitofp(product, FLOATS), d)
        if m is not None:  # the sums are negative already
            change = build.fmul(build.sitofp(sums, FLOATS), m)
            value = build.fadd(value, change) if minus else build.fsub(value, change)
        scale = self.at(x, build.add(k, self.scales), FLOATS)
        if n == self.VEC.count:
            self.grow(row, vector, value, scale)
        else:  # the other half of the lanes gets nothing
            value = build.fmul(value, scale)
            wide = build.shuffle_vector(value, ir.Constant(FLOATS, None), lanes(range(2 * n)))
            total = self.sums[row][vector]
            build.store(build.fadd(build.load(total), wide), total)

    def byte_products(self, start: Any, q: Any, x: Any) -> Any:
        """start + the sum of four products q x, unsigned by signed bytes, in every 32-bit lane."""
        build, n = self.build, self.lanes
        INTS, BYTES = ir.VectorType(I32, n), ir.VectorType(I8, 4 * n)
        if HAS_VNNI:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * n}"
            kind = BYTES if binding.llvm_version_info[0] >= 22 else INTS
            dot = declare(build, name, ir.FunctionType(INTS, [INTS, kind, kind]))
            return build.call(dot, [start, build.bitcast(q, kind), build.bitcast(x, kind)])
        WORDS = ir.VectorType(I16, 4 * n)
        # 255 times 127 fits 16 bits, signed; two of them do not.
        products = build.sext(build.mul(build.zext(q, WORDS), build.sext(x, WORDS)), ir.VectorType(I32, 4 * n))
        for i in range(4):
            part = build.shuffle_vector(products, products, lanes(range(i, 4 * n, 4)))
            start = build.add(start, part)
        return start
