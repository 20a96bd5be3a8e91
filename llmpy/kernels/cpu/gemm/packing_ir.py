"""Packing of operands into panels, emitted as LLVM IR: some vectors at a time, converted and transposed.

A panel is made of 4-byte words: a float32, or a pair of bfloat16 that follow each other along the depth. `Source` says
how words are read from a matrix; `make_copy` stores them in order, `make_transpose` transposes a block of them.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.jit.llvm_ir import (
    F32,
    I16,
    I32,
    I64,
    call,
    lanes,
    load,
    rounded,
    splat,
    store,
    stream_past_caches,
    widened,
)


class Source(Enum):
    """Source of a vector of words: row i of a matrix; for pairs across the depth, its rows 2 i and 2 i + 1."""

    FLOATS = "float32 as they are"
    WIDENED = "bfloat16, made float32"
    PAIRS = "bfloat16, two neighbours of a row to a word"
    ROUNDED_PAIRS = "float32, rounded, two neighbours of a row to a word"
    ROW_PAIRS = "bfloat16, a word from two rows, one below the other"
    ROUNDED_ROW_PAIRS = "float32, rounded, a word from two rows"

    @property
    def rows(self) -> int:
        """Rows of the matrix to one row of words."""
        return 2 if self in (Source.ROW_PAIRS, Source.ROUNDED_ROW_PAIRS) else 1

    @property
    def bytes(self) -> int:
        """Bytes along a row that make one word."""
        return {Source.FLOATS: 4, Source.WIDENED: 2, Source.PAIRS: 4, Source.ROUNDED_PAIRS: 8, Source.ROW_PAIRS: 2}.get(
            self, 4
        )


def _read(build: ir.IRBuilder, source: Source, address: Any, stride: Any, count: int) -> Any:
    """`count` words from `address` on, as <count x float>; `stride` is the bytes from a row to the next."""
    floats, halves = ir.VectorType(F32, count), ir.VectorType(I16, count)
    below = build.add(address, stride) if source.rows == 2 else None
    match source:
        case Source.FLOATS | Source.PAIRS:
            return load(build, address, 0, floats)
        case Source.WIDENED:
            return widened(build, load(build, address, 0, halves), count)
        case Source.ROUNDED_PAIRS:
            both = rounded(build, load(build, address, 0, ir.VectorType(F32, 2 * count)), 2 * count)
            undefined = ir.Constant(both.type, ir.Undefined)
            first = build.shuffle_vector(both, undefined, lanes(range(0, 2 * count, 2)))
            second = build.shuffle_vector(both, undefined, lanes(range(1, 2 * count, 2)))
        case Source.ROW_PAIRS:
            first, second = (
                build.shl(build.zext(load(build, row, 0, halves), ir.VectorType(I32, count)), splat(I32, count, 16))
                for row in (address, below)
            )
        case Source.ROUNDED_ROW_PAIRS:
            first, second = (rounded(build, load(build, row, 0, floats), count) for row in (address, below))
    upper = build.and_(second, splat(I32, count, 0xFFFF0000))
    return build.bitcast(build.or_(build.lshr(first, splat(I32, count, 16)), upper), floats)


def make_copy(size: int, width: int, source: Source, stream: bool = False) -> Any:
    """copy(source, stride, target): `size` words, in vectors of at most `width`; `stride` in bytes.

    `stream`: past the caches, for what is not read again soon; the target begins at a whole vector.
    """
    pieces = []
    start = 0
    while start < size:
        piece = min(width, 1 << ((size - start).bit_length() - 1))
        pieces.append((start, piece))
        start += piece

    def body(build, args):
        address, stride, target = args
        for start, piece in pieces:
            words = _read(build, source, build.add(address, I64(start * source.bytes)), stride, piece)
            _put(build, target, start, words, stream)

    @intrinsic
    def copy(typingctx, address, stride, target):
        signature = types.void(types.uintp, types.int64, types.uintp)
        return signature, call(f"llmpy_copy_{size}_{source.name}_{stream}", [I64] * 3, body)

    return copy


def make_transpose(size: int, source: Source, stream: bool = False) -> Any:
    """transpose(source, stride, target, target_stride): a block of size x size words; size is a power of two, `stride`
    counts bytes, `target_stride` words. `stream`: as above.

    Rows are merged with the row `step` below, step = 1, 2, 4 ...: log2(size) rounds of two-source shuffles.
    """

    @intrinsic
    def transpose(typingctx, address, stride, target, target_stride):
        signature = types.void(types.uintp, types.int64, types.uintp, types.int64)
        name = f"llmpy_transpose_{size}_{source.name}_{stream}"
        return signature, call(name, [I64] * 4, lambda build, args: _emit_transpose(size, source, stream, build, args))

    return transpose


def _emit_transpose(size: int, source: Source, stream: bool, build: ir.IRBuilder, args: Any) -> None:
    address, stride, target, target_stride = args
    rows = [build.add(address, build.mul(stride, I64(i * source.rows))) for i in range(size)]
    block = [_read(build, source, row, stride, size) for row in rows]
    step = 1
    while step < size:
        low = [lane if not lane & step else size + lane - step for lane in range(size)]
        high = [lane + step if not lane & step else size + lane for lane in range(size)]
        for i in range(size):
            if not i & step:
                upper, lower = block[i], block[i + step]
                block[i] = build.shuffle_vector(upper, lower, lanes(low))
                block[i + step] = build.shuffle_vector(upper, lower, lanes(high))
        step *= 2
    for i, row in enumerate(block):
        _put(build, build.add(target, build.mul(target_stride, I64(i * 4))), 0, row, stream)


def _put(build: ir.IRBuilder, target: Any, offset: int, words: Any, stream: bool) -> None:
    stored = store(build, target, offset, words)
    if stream:
        stream_past_caches(build, stored, 4 * words.type.count)
