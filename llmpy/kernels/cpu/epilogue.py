"""What follows a matrix product, done on each tile of sums while it is in the first cache."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.compile import helper
from llmpy.kernels.cpu.emit import F32, I16, I64, call, load, rounded, store, upper_halves, widened
from llmpy.kernels.cpu.isa import ISA
from llmpy.kernels.cpu.scalars import narrow_like, store_bfloat16, store_float, widen
from llmpy.kernels.cpu.vector_math import gelu, gelu_derivative

NOTHING, BIAS, BIAS_RESIDUAL, BIAS_GELU, GELU_GRADIENT = 0, 1, 2, 3, 4
WIDTH = ISA.tile.width


def _make_vectors(bias: bool, residual: bool) -> Any:
    """finish(n, y, sums, b, other, narrow): y = sums [+ b] [+ other] for n numbers, a multiple of WIDTH, at addresses;
    y and other are bfloat16 where `narrow`.

    Emitted, because LLVM does not turn such a loop into vectors: for all it knows, y might overlap what is read.
    """
    VEC, HALVES = ir.VectorType(F32, WIDTH), ir.VectorType(I16, WIDTH)

    def body(build, args):
        n, y, sums, b, other, narrow = args
        wide_loop, narrow_loop, end = (build.append_basic_block(name) for name in ("wide", "narrow", "end"))
        entry = build.block
        build.cbranch(build.icmp_signed("==", narrow, I64(0)), wide_loop, narrow_loop)
        for loop in (wide_loop, narrow_loop):
            build.position_at_end(loop)
            j = build.phi(I64)
            j.add_incoming(I64(0), entry)
            far = build.shl(j, I64(2))
            near = build.shl(j, I64(1)) if loop is narrow_loop else far
            total = load(build, build.add(sums, far), 0, VEC)
            if bias:
                total = build.fadd(total, load(build, build.add(b, far), 0, VEC))
            if residual and loop is narrow_loop:
                total = build.fadd(total, widened(build, load(build, build.add(other, near), 0, HALVES), WIDTH))
            elif residual:
                total = build.fadd(total, load(build, build.add(other, near), 0, VEC))
            if loop is narrow_loop:
                total = upper_halves(build, rounded(build, total, WIDTH), WIDTH)
            store(build, build.add(y, near), 0, total)
            following = build.add(j, I64(WIDTH))
            j.add_incoming(following, loop)
            build.cbranch(build.icmp_signed("<", following, n), loop, end)
        build.position_at_end(end)

    @intrinsic
    def finish(typingctx, n, y, sums, b, other, narrow):
        signature = types.void(types.int64, types.uintp, types.uintp, types.uintp, types.uintp, types.int64)
        return signature, call(f"llmpy_finish_{bias}_{residual}", [I64] * 6, body)

    return finish


_plain, _biased, _added, _biased_added = (
    _make_vectors(bias, residual) for bias, residual in ((False, False), (True, False), (False, True), (True, True))
)


@helper
def store_row(address, row, narrow):
    """row, float32 -> the numbers at an address, bfloat16 where `narrow`."""
    whole = row.size // WIDTH * WIDTH
    if whole:
        _plain(whole, address, row.ctypes.data, 0, 0, 1 if narrow else 0)
    for j in range(whole, row.size):
        if narrow:
            store_bfloat16(address + j * 2, row[j])
        else:
            store_float(address + j * 4, row[j])


@helper
def finish(c, sums, ld, i0, j0, add, epilogue, bias, extra):
    """A tile of sums, float32 rows `ld` apart, and what follows them -> c[i0:, j0:], as much of it as there is.

    c [M, N], extra [M, N]: GELU's input is written there, or read and replaced by its GELU; or a residual is read.
    `add`: to what c holds.
    """
    i1, j1 = min(c.shape[0], i0 + sums.shape[0] // ld), min(c.shape[1], j0 + ld)
    whole, narrow = j1 - j0 == ld, 1 if c.itemsize == 2 else 0
    for i in range(i0, i1):
        at = (i - i0) * ld
        y, total = c[i, j0:j1], sums[at : at + j1 - j0]
        if add and epilogue == NOTHING and whole:
            _added(ld, y.ctypes.data, total.ctypes.data, 0, y.ctypes.data, narrow)
            continue
        if add:
            for j in range(y.size):
                total[j] += widen(y[j])
        if epilogue == NOTHING and whole:
            _plain(ld, y.ctypes.data, total.ctypes.data, 0, 0, narrow)
        elif epilogue == NOTHING:
            for j in range(y.size):
                y[j] = narrow_like(c, total[j])
        elif epilogue == BIAS and whole:
            _biased(ld, y.ctypes.data, total.ctypes.data, bias[j0:].ctypes.data, 0, narrow)
        elif epilogue == BIAS:
            b = bias[j0:j1]
            for j in range(y.size):
                y[j] = narrow_like(c, total[j] + b[j])
        elif epilogue == BIAS_RESIDUAL and whole:
            _biased_added(
                ld, y.ctypes.data, total.ctypes.data, bias[j0:].ctypes.data, extra[i, j0:].ctypes.data, narrow
            )
        elif epilogue == BIAS_RESIDUAL:
            b, residual = bias[j0:j1], extra[i, j0:j1]
            for j in range(y.size):
                y[j] = narrow_like(c, total[j] + b[j] + widen(residual[j]))
        elif epilogue == BIAS_GELU:
            b, pre_gelu = bias[j0:j1], extra[i, j0:j1]
            for j in range(y.size):
                pre_gelu[j] = narrow_like(extra, total[j] + b[j])
                y[j] = narrow_like(c, gelu(widen(pre_gelu[j])))
        else:
            pre_gelu = extra[i, j0:j1]
            for j in range(y.size):
                x = widen(pre_gelu[j])
                y[j] = narrow_like(c, total[j] * gelu_derivative(x))
                pre_gelu[j] = narrow_like(extra, gelu(x))
