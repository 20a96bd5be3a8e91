"""Dot products of quantized weights with vectors in bytes, in whole numbers (dots.py)."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir

from llmpy.kernels.cpu.decode.gemv_float import F16, Dots, repeat
from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.kernels.cpu.jit.llvm_ir import F32, I8, I16, I32, I64, broadcast, declare, lanes, splat

GROUP = 32  # numbers of a vector in bytes that have one scale
BYTES_LANES = max(8, ISA.tile.width)  # 32-bit lanes, of four bytes each: one block of 32 or two
_FEATURES = binding.get_host_cpu_features()
_VNNI = {16: "avx512vnni", 8: "avxvnni"}.get(ISA.tile.width, "none")
HAS_VNNI = ISA.name != "numpy" and bool(_FEATURES.get(_VNNI) or (_VNNI == "avxvnni" and _FEATURES.get("avx512vnni")))


class ByteDots(Dots):
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
        """Emits one step over as many blocks as fit the lanes, at block k of the rows."""
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
