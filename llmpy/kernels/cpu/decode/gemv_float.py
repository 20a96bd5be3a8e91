"""Tiles of dot products in LLVM IR: some rows of a weight by some vectors, their sums in registers (dots.py)."""

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir

from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.kernels.cpu.jit.llvm_ir import BF16, F32, I16, I32, I64, broadcast, declare, lanes, prefetch_line, widened

AHEAD = 2048  # bytes that are asked for before they are read
F16 = ir.HalfType()


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
    """Loads the value that lies `offset` bytes (an LLVM value or an int) behind an address."""
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


class Dots:
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


class FloatDots(Dots):
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


class PairDots(FloatDots):
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
