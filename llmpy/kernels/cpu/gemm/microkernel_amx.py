"""The matrix tiles of AMX: eight registers of 16 rows x 64 bytes, and an instruction that multiplies two of them.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. A tile of C is 32 x 32: four
registers of sums, fed by two of A and two of B, 32 deep at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.gemm.microkernel_vector import ADD
from llmpy.kernels.cpu.jit.llvm_ir import I8, I64, VOID, call, declare, store

SIDE = 32  # rows and columns of C in a tile, and numbers of the depth to a step
_REGISTER_ROWS, _ROW_BYTES = 16, 64
_POINTER = ir.PointerType(I8)

# Palette 1: eight tiles of 16 rows of 64 bytes each.
CONFIG = np.zeros(64, np.uint8)
CONFIG[0], CONFIG[16:32:2], CONFIG[48:56] = 1, _ROW_BYTES, _REGISTER_ROWS


class _Instructions:
    """The instructions on registers that are numbered from 0, by their LLVM names or those of an emulator."""

    def __init__(self, build: ir.IRBuilder, prefix: str) -> None:
        self.build, self.prefix = build, prefix

    def _call(self, name: str, registers: tuple[int, ...], *more: Any) -> None:
        arguments = [I8(register) for register in registers] + list(more)
        kinds = [argument.type for argument in arguments]
        self.build.call(declare(self.build, self.prefix + name, ir.FunctionType(VOID, kinds)), arguments)

    def _pointer(self, address: Any) -> Any:
        return self.build.inttoptr(address, _POINTER)

    def configure(self, address: Any) -> None:
        self._call("ldtilecfg", (), self._pointer(address))

    def release(self) -> None:
        self._call("tilerelease", ())

    def zero(self, register: int) -> None:
        self._call("tilezero", (register,))

    def load(self, register: int, address: Any, stride: Any) -> None:
        self._call("tileloadd64", (register,), self._pointer(address), stride)

    def store(self, register: int, address: Any, stride: Any) -> None:
        self._call("tilestored64", (register,), self._pointer(address), stride)

    def multiply(self, sums: int, a: int, b: int) -> None:
        self._call("tdpbf16ps", (sums, a, b))


def emit_tile(build: ir.IRBuilder, args: Any, prefix: str) -> None:
    """The body of a tile, as `microkernel.emit_tile`: a [depth / 32, 32, 32], b [depth / 2, 32, 2], both bfloat16."""
    depth, a, b, c, ldc, ending = args
    do, stride = _Instructions(build, prefix), build.mul(ldc, I64(4))
    # Register 2 i + j has the sums of rows 16 i and columns 16 j on.
    corners = [build.add(c, build.add(build.mul(stride, I64(16 * i)), I64(64 * j))) for i in (0, 1) for j in (0, 1)]
    fresh, grown, loop, done = (build.append_basic_block(n) for n in ("fresh", "grown", "depth", "done"))
    build.cbranch(build.icmp_signed("==", ending, I64(ADD)), grown, fresh)
    build.position_at_end(fresh)
    for register in range(4):
        do.zero(register)
    build.branch(loop)
    build.position_at_end(grown)
    for register, corner in enumerate(corners):
        do.load(register, corner, stride)
    build.branch(loop)

    build.position_at_end(loop)
    k = build.phi(I64)
    at_a, at_b = (build.add(panel, build.mul(k, I64(SIDE * 2))) for panel in (a, b))
    do.load(4, at_a, I64(_ROW_BYTES))
    do.load(6, at_b, I64(2 * _ROW_BYTES))
    do.load(7, build.add(at_b, I64(_ROW_BYTES)), I64(2 * _ROW_BYTES))
    do.load(5, build.add(at_a, I64(_REGISTER_ROWS * _ROW_BYTES)), I64(_ROW_BYTES))
    for i in (0, 1):
        for j in (0, 1):
            do.multiply(2 * i + j, 4 + i, 6 + j)
    k_next = build.add(k, I64(SIDE))
    k.add_incoming(I64(0), fresh)
    k.add_incoming(I64(0), grown)
    k.add_incoming(k_next, loop)
    build.cbranch(build.icmp_signed("<", k_next, depth), loop, done)
    build.position_at_end(done)
    for register, corner in enumerate(corners):
        do.store(register, corner, stride)


def make_tile(prefix: str = "llvm.x86.") -> Any:
    """The micro-kernel: tile(depth, a, b, c, ldc, ending), depth a multiple of 32; between `begin` and `end`."""

    @intrinsic
    def tile(typingctx, depth, a, b, c, ldc, ending):
        signature = types.void(types.int64, types.uintp, types.uintp, types.uintp, types.int64, types.int64)
        return signature, call("llmpy_tile_amx", [I64] * 6, lambda build, args: emit_tile(build, args, prefix))

    return tile


def make_begin(prefix: str = "llvm.x86.") -> Any:
    """begin(): gives the tile registers of this thread their shape."""

    @intrinsic
    def begin(typingctx):
        def codegen(context, build, sig, args):
            # The 64 bytes of the configuration are put on the stack: an address in the code could not be cached.
            space = build.alloca(I64, 8)
            address = build.ptrtoint(space, I64)
            for i, word in enumerate(CONFIG.view(np.int64)):
                store(build, build.add(address, I64(8 * i)), 0, I64(int(word)))
            _Instructions(build, prefix).configure(address)
            return context.get_dummy_value()

        return types.void(), codegen

    return begin


def make_end(prefix: str = "llvm.x86.") -> Any:
    """end(): the registers are given back; the processor may sleep deeper, and a switch of threads saves less."""

    @intrinsic
    def end(typingctx):
        def codegen(context, build, sig, args):
            _Instructions(build, prefix).release()
            return context.get_dummy_value()

        return types.void(), codegen

    return end
