"""Epilogues of a GEMM, applied to each tile of sums while the tile is in the L1 cache."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.jit.compile import helper
from llmpy.kernels.cpu.jit.intrinsics import load_float, nearest_bfloat16, store_bfloat16, store_float, widen
from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.kernels.cpu.jit.llvm_ir import F32, I16, I64, call, load, loop, rounded, store, upper_halves, widened
from llmpy.kernels.cpu.jit.vector_math import gelu, gelu_derivative

NOTHING, BIAS, BIAS_RESIDUAL, BIAS_GELU, GELU_GRADIENT = 0, 1, 2, 3, 4
WIDTH = ISA.tile.width


def _make_vectors(narrow: bool, bias: bool = False, added: str = "nothing") -> Any:
    """finish(rows, n, y, y_stride, sums, ld, b, other, other_stride): y = sums [+ b] [+ other] for rows of n numbers, a
    multiple of WIDTH, at addresses, strides in bytes. y is bfloat16 if `narrow`; `added` is the type of other, if any.

    Emitted, because LLVM does not turn such a loop into vectors: for all it knows, y might overlap what is read.
    """
    VEC, HALVES = ir.VectorType(F32, WIDTH), ir.VectorType(I16, WIDTH)

    def body(build, args):
        rows, n, y, y_stride, sums, ld, b, other, other_stride = args

        def finish_row(i):
            starts = ((y, y_stride), (sums, ld), (other, other_stride))
            at_y, at_sums, at_other = (build.add(start, build.mul(i, stride)) for start, stride in starts)

            def finish_vector(j):
                far, near = build.shl(j, I64(2)), build.shl(j, I64(1))  # bytes to number j of float32, of bfloat16
                total = load(build, build.add(at_sums, far), 0, VEC)
                if bias:
                    total = build.fadd(total, load(build, build.add(b, far), 0, VEC))
                if added == "bfloat16":
                    total = build.fadd(total, widened(build, load(build, build.add(at_other, near), 0, HALVES), WIDTH))
                elif added == "float32":
                    total = build.fadd(total, load(build, build.add(at_other, far), 0, VEC))
                if narrow:
                    total = upper_halves(build, rounded(build, total, WIDTH), WIDTH)
                store(build, build.add(at_y, near if narrow else far), 0, total)

            loop(build, n, WIDTH, finish_vector)

        loop(build, rows, 1, finish_row)

    @intrinsic
    def finish(typingctx, rows, n, y, y_stride, sums, ld, b, other, other_stride):
        number, address = types.int64, types.uintp
        kinds = (number, number, address, number, address, number, address, address, number)
        return types.void(*kinds), call(f"llmpy_finish_{narrow}_{bias}_{added}", [I64] * 9, body)

    return finish


_store_float32, _store_bfloat16 = _make_vectors(False), _make_vectors(True)
_bias_float32, _bias_bfloat16 = _make_vectors(False, bias=True), _make_vectors(True, bias=True)
_add_float32, _add_bfloat16 = _make_vectors(False, added="float32"), _make_vectors(False, added="bfloat16")
_both_float32, _both_bfloat16 = _make_vectors(False, True, "float32"), _make_vectors(True, True, "bfloat16")


@helper
def _store(rows, n, y, y_stride, sums, ld, narrow):
    if narrow:
        _store_bfloat16(rows, n, y, y_stride, sums, ld, 0, 0, 0)
    else:
        _store_float32(rows, n, y, y_stride, sums, ld, 0, 0, 0)


@helper
def _add(rows, n, sums, ld, other, stride, narrow):
    """sums += other"""
    if narrow:
        _add_bfloat16(rows, n, sums, ld, sums, ld, 0, other, stride)
    else:
        _add_float32(rows, n, sums, ld, sums, ld, 0, other, stride)


@helper
def store_vector(y, x, n, narrow):
    """n float32 numbers at the address x -> y, as bfloat16 where `narrow`."""
    whole, item = n // WIDTH * WIDTH, 2 if narrow else 4
    if whole:
        _store(1, whole, y, 0, x, 0, narrow)
    for j in range(whole, n):
        if narrow:
            store_bfloat16(y + j * item, load_float(x + j * 4))
        else:
            store_float(y + j * item, load_float(x + j * 4))


@helper
def _gelu_tile(sums, other, narrow):
    """sums: rounded to bfloat16 where that is what is kept of them -> other: their GELU."""
    for i in range(sums.size):
        x = nearest_bfloat16(sums[i]) if narrow else sums[i]
        sums[i] = x
        other[i] = gelu(x)


@helper
def _gelu_gradient_tile(sums, other):
    """other, GELU's input -> its GELU; sums, the gradient by GELU's output -> by its input."""
    for i in range(sums.size):
        x = other[i]
        sums[i] *= gelu_derivative(x)
        other[i] = gelu(x)


@helper
def finish(c, space, ld, i0, j0, add, epilogue, bias, extra):
    """A tile of sums, float32 rows `ld` apart, and what follows them -> c[i0:, j0:], as much of it as there is.

    `space` has the sums in its first half, and scratch of that size in the second. c [M, N], extra [M, N]: GELU's input
    is written there, or read and replaced by its GELU; or a residual is read. `add`: to what c holds.
    """
    half, narrow = space.shape[0] // 2, c.itemsize == 2
    rows, columns = min(c.shape[0] - i0, half // ld), min(c.shape[1] - j0, ld)
    sums, other = space[: rows * ld], space[half : half + rows * ld]
    stride, at = c.shape[1] * c.itemsize, (i0 * c.shape[1] + j0) * c.itemsize
    if columns == ld and ld % WIDTH == 0:
        _finish_whole(
            c.ctypes.data + at, extra.ctypes.data + at, stride, sums, other, rows, ld, add, epilogue,
            bias.ctypes.data + j0 * 4, narrow,
        )  # fmt: skip
        return
    for i in range(rows):
        y, total = c[i0 + i, j0 : j0 + columns], sums[i * ld : i * ld + columns]
        if add:
            for j in range(columns):
                total[j] += widen(y[j])
        if epilogue in (BIAS, BIAS_RESIDUAL, BIAS_GELU):
            b = bias[j0 : j0 + columns]
            for j in range(columns):
                total[j] += b[j]
        if epilogue == BIAS_RESIDUAL:
            residual = extra[i0 + i, j0 : j0 + columns]
            for j in range(columns):
                total[j] += widen(residual[j])
        elif epilogue == GELU_GRADIENT:
            pre_gelu = extra[i0 + i, j0 : j0 + columns]
            for j in range(columns):
                other[i * ld + j] = widen(pre_gelu[j])
        if epilogue < BIAS_GELU:
            store_vector(y.ctypes.data, total.ctypes.data, columns, narrow)
    if epilogue == BIAS_GELU:
        _gelu_tile(sums, other, narrow)
    elif epilogue == GELU_GRADIENT:
        _gelu_gradient_tile(sums, other)
    if epilogue >= BIAS_GELU:  # of the two, c takes GELU's output, or the gradient
        for i in range(rows):
            of_c, of_extra = (other, sums) if epilogue == BIAS_GELU else (sums, other)
            store_vector(c.ctypes.data + at + i * stride, of_c[i * ld :].ctypes.data, columns, narrow)
            store_vector(extra.ctypes.data + at + i * stride, of_extra[i * ld :].ctypes.data, columns, narrow)


@helper
def _finish_whole(y, extra, stride, sums, other, rows, n, add, epilogue, b, narrow):
    """The same for a tile that reaches over no border: y, extra and b are addresses, the stride is in bytes."""
    at, at_other, wide = sums.ctypes.data, other.ctypes.data, n * 4
    if add:
        _add(rows, n, at, wide, y, stride, narrow)
    if epilogue == NOTHING:
        _store(rows, n, y, stride, at, wide, narrow)
    elif epilogue == BIAS and narrow:
        _bias_bfloat16(rows, n, y, stride, at, wide, b, 0, 0)
    elif epilogue == BIAS:
        _bias_float32(rows, n, y, stride, at, wide, b, 0, 0)
    elif epilogue == BIAS_RESIDUAL and narrow:
        _both_bfloat16(rows, n, y, stride, at, wide, b, extra, stride)
    elif epilogue == BIAS_RESIDUAL:
        _both_float32(rows, n, y, stride, at, wide, b, extra, stride)
    elif epilogue == BIAS_GELU:
        _bias_float32(rows, n, at, wide, at, wide, b, 0, 0)
        _gelu_tile(sums, other, narrow)
        _store(rows, n, extra, stride, at, wide, narrow)
        _store(rows, n, y, stride, at_other, wide, narrow)
    else:
        other[:] = 0
        _add(rows, n, at_other, wide, extra, stride, narrow)
        _gelu_gradient_tile(sums, other)
        _store(rows, n, y, stride, at, wide, narrow)
        _store(rows, n, extra, stride, at_other, wide, narrow)
