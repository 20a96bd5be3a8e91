"""Dequantization of stored rows to float32 while a GEMM packs its panels, block by block, as LLVM IR.

The layouts are in llmpy/quant/types.py. Vectors are as long as a block's parts are, and LLVM cuts them into those that
the processor has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.jit import llvm_ir
from llmpy.kernels.cpu.jit.llvm_ir import I8, I16, I32, I64, broadcast, lanes, load, loop, splat, store
from llmpy.quant.types import F16, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0

_F16_AT_ONCE = 16  # numbers
_TWO_TO_THE_112 = 2.0**112  # what a float16's exponent lacks, read as a float32's

# ---- what a block is made of ---------------------------------------------------------------------------------------


def _widen_half(build: ir.IRBuilder, halves: Any, width: int) -> Any:
    """float16 as <width x i16> -> <width x float>; a scalar where width is 0. In whole numbers and one exact product:
    not every processor has an instruction for it."""

    def constant(value: int) -> Any:
        return splat(I32, width, value) if width else I32(value)

    words, floats = (ir.VectorType(kind, width) if width else kind for kind in (I32, llvm_ir.F32))
    bits = build.zext(halves, words)
    sign = build.shl(build.and_(bits, constant(0x8000)), constant(16))
    rest = build.shl(build.and_(bits, constant(0x7FFF)), constant(13))
    scale = splat(llvm_ir.F32, width, _TWO_TO_THE_112) if width else llvm_ir.F32(_TWO_TO_THE_112)
    finite = build.bitcast(build.fmul(build.bitcast(rest, floats), scale), words)
    is_finite = build.icmp_unsigned("<", rest, constant(0x7C00 << 13))
    magnitude = build.select(is_finite, finite, build.or_(rest, constant(0x7F800000)))
    return build.bitcast(build.or_(magnitude, sign), floats)


def _half(build: ir.IRBuilder, address: Any, offset: int) -> Any:
    """The float16 at so many bytes behind the address, as a float32."""
    return _widen_half(build, load(build, build.add(address, I64(offset)), 0, I16), 0)


def _bytes(build: ir.IRBuilder, address: Any, offset: int, count: int) -> Any:
    return load(build, build.add(address, I64(offset)), 0, ir.VectorType(I8, count))


def _nibbles(build: ir.IRBuilder, data: Any) -> tuple[Any, Any]:
    """The low and the high halves of bytes."""
    count = data.type.count
    return build.and_(data, splat(I8, count, 15)), build.lshr(data, splat(I8, count, 4))


def _floats(build: ir.IRBuilder, data: Any, signed: bool = True) -> Any:
    """Bytes as float32."""
    count = data.type.count
    words = (build.sext if signed else build.zext)(data, ir.VectorType(I32, count))
    return build.sitofp(words, ir.VectorType(llvm_ir.F32, count))


def _picked(build: ir.IRBuilder, vector: Any, indices: list[int]) -> Any:
    """A vector of lanes of another."""
    return build.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes(indices))


# ---- the blocks: body(build, address of a block, address of its numbers) -------------------------------------------


def _f16(build: ir.IRBuilder, block: Any, out: Any) -> None:
    halves = load(build, block, 0, ir.VectorType(I16, _F16_AT_ONCE))
    store(build, out, 0, _widen_half(build, halves, _F16_AT_ONCE))


def _q8_0(build: ir.IRBuilder, block: Any, out: Any) -> None:
    d = broadcast(build, _half(build, block, 0), 32)
    store(build, out, 0, build.fmul(_floats(build, _bytes(build, block, 2, 32)), d))


def _q4_0(build: ir.IRBuilder, block: Any, out: Any) -> None:
    d = broadcast(build, _half(build, block, 0), 16)
    for i, q in enumerate(_nibbles(build, _bytes(build, block, 2, 16))):
        store(build, out, 16 * i, build.fmul(_floats(build, build.sub(q, splat(I8, 16, 8))), d))


def _q4_1(build: ir.IRBuilder, block: Any, out: Any) -> None:
    d, m = (broadcast(build, _half(build, block, at), 16) for at in (0, 2))
    for i, q in enumerate(_nibbles(build, _bytes(build, block, 4, 16))):
        store(build, out, 16 * i, build.fadd(build.fmul(_floats(build, q, signed=False), d), m))


def _q4_k(build: ir.IRBuilder, block: Any, out: Any) -> None:
    low, middle, high = (_bytes(build, block, at, 4) for at in (4, 8, 12))

    def masked(data: Any, mask: int) -> Any:
        return build.and_(data, splat(I8, 4, mask))

    def upper(data: Any) -> Any:
        return build.shl(build.lshr(data, splat(I8, 4, 6)), splat(I8, 4, 4))

    first = masked(low, 63), masked(middle, 63)
    last = build.or_(masked(high, 15), upper(low)), build.or_(build.lshr(high, splat(I8, 4, 4)), upper(middle))
    scales, minima = (
        build.fmul(
            _floats(build, build.shuffle_vector(a, b, lanes(range(8))), signed=False),
            broadcast(build, _half(build, block, at), 8),
        )
        for a, b, at in zip(first, last, (0, 2), strict=True)
    )
    for pair in range(4):
        for i, q in enumerate(_nibbles(build, _bytes(build, block, 16 + 32 * pair, 32))):
            eighth = 2 * pair + i
            scale, minimum = (_picked(build, vector, [eighth] * 32) for vector in (scales, minima))
            product = build.fmul(_floats(build, q, signed=False), scale)
            store(build, out, 32 * eighth, build.fsub(product, minimum))


def _q6_k(build: ir.IRBuilder, block: Any, out: Any) -> None:
    d = broadcast(build, _half(build, block, 208), 16)
    scales = build.fmul(_floats(build, _bytes(build, block, 192, 16)), d)
    for half in range(2):
        upper = _bytes(build, block, 128 + 32 * half, 32)
        lower = [_nibbles(build, _bytes(build, block, 64 * half + 32 * i, 32)) for i in range(2)]
        for quarter in range(4):
            two = build.and_(build.lshr(upper, splat(I8, 32, 2 * quarter)), splat(I8, 32, 3))
            q = build.or_(lower[quarter % 2][quarter // 2], build.shl(two, splat(I8, 32, 4)))
            floats = _floats(build, build.sub(q, splat(I8, 32, 32)))
            first = 8 * half + 2 * quarter
            scale = _picked(build, scales, [first] * 16 + [first + 1] * 16)
            store(build, out, 128 * half + 32 * quarter, build.fmul(floats, scale))


# Of each type: the numbers and bytes that its body takes at a time.
_BODIES = {kind.code: (kind.numbers, kind.bytes, body) for kind, body in (
    (Q4_0, _q4_0), (Q4_1, _q4_1), (Q8_0, _q8_0), (Q4_K, _q4_k), (Q6_K, _q6_k),
)} | {F16.code: (_F16_AT_ONCE, _F16_AT_ONCE * F16.bytes, _f16)}  # fmt: skip


def _emit_blocks(
    build: ir.IRBuilder, first: Any, blocks: Any, out: Any, numbers: int, size: int, body: Callable[..., None]
) -> None:
    def each(i: Any) -> None:
        body(build, build.add(first, build.mul(i, I64(size))), build.add(out, build.mul(i, I64(numbers * 4))))

    with build.if_then(build.icmp_signed(">", blocks, I64(0))):
        loop(build, blocks, 1, each)


def _emit_widen_row(build: ir.IRBuilder, args: Any) -> None:
    kind, row, start, n, out = args
    for code, (numbers, size, body) in _BODIES.items():
        with build.if_then(build.icmp_signed("==", kind, I64(code))):
            first = build.add(row, build.mul(build.sdiv(start, I64(numbers)), I64(size)))
            _emit_blocks(build, first, build.sdiv(n, I64(numbers)), out, numbers, size, body)
    rest = build.srem(n, I64(_F16_AT_ONCE))  # of a row of float16, which alone need not be whole blocks

    def single(i: Any) -> None:
        at = build.add(build.sub(n, rest), i)
        half = _half(build, build.add(row, build.mul(build.add(start, at), I64(2))), 0)
        store(build, build.add(out, build.mul(at, I64(4))), 0, half)

    with build.if_then(build.icmp_signed(">", rest, I64(0))):
        loop(build, rest, 1, single)


@intrinsic
def widen_row(typingctx, kind, row, start, n, out):
    """Dequantizes n elements of the row at address `row` to float32 at address `out`.

    `kind` is the code of the stored type (float16 or a quantized one); `start` and n are multiples of its block size.
    """
    signature = types.void(types.int64, types.uintp, types.int64, types.int64, types.uintp)
    return signature, llvm_ir.call("llmpy_widen_row", [I64] * 5, _emit_widen_row)
