"""Numbers at addresses, numbers from bits, and bfloat16 beside float32: what Numba has no words for.

Inside kernels a bfloat16 array is one of uint16. `widen` and `narrow_like` let one source serve both types: on float32
they do nothing.
"""

from __future__ import annotations

import platform
import sys

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.jit.llvm_ir import (
    F32,
    I16,
    I32,
    I64,
    VOID,
    call,
    declare,
    load,
    loop,
    prefetch_line,
    rounded,
    store,
    upper_halves,
    widened,
)

SPINS = 4096  # between two offers of the core; a power of two


@intrinsic
def widen(typingctx, number):
    """The float32 that a number is: a float32, or the uint16 bits of a bfloat16."""
    if number not in (types.float32, types.uint16):
        return None

    def codegen(context, build, sig, args):
        return args[0] if sig.args[0] == types.float32 else widened(build, args[0], 0)

    return types.float32(number), codegen


@intrinsic
def narrow_like(typingctx, array, value):
    """A float32 as `array` holds its numbers: itself, or the bits of the nearest bfloat16."""
    if array.dtype not in (types.float32, types.uint16):
        return None

    def codegen(context, build, sig, args):
        if sig.return_type == types.float32:
            return args[1]
        return upper_halves(build, rounded(build, args[1], 0), 0)

    return array.dtype(array, types.float32), codegen


@intrinsic
def nearest_bfloat16(typingctx, value):
    """The bfloat16 that is nearest to a float32, as a float32."""

    def codegen(context, build, sig, args):
        return build.bitcast(build.and_(rounded(build, args[0], 0), I32(0xFFFF0000)), F32)

    return types.float32(types.float32), codegen


@intrinsic
def round_at_random(typingctx, value, index, seed):
    """A float32 rounded to a bfloat16 above or below it, so that the mean over many indices and seeds is the value.

    16 random bits are added below the last that is kept. They are xxHash32's last rounds (Collet 2014) of the index.
    NaN stays NaN.
    """

    def codegen(context, build, sig, args):
        bits = build.bitcast(args[0], I32)
        index, seed = (build.trunc(x, I32) for x in args[1:])
        x = build.add(build.mul(index, I32(0x9E3779B1)), seed)
        for shift, factor in ((15, 0x85EBCA77), (13, 0xC2B2AE3D)):
            x = build.mul(build.xor(x, build.lshr(x, I32(shift))), I32(factor))
        x = build.xor(x, build.lshr(x, I32(16)))
        grown = build.add(bits, build.and_(x, I32(0xFFFF)))
        is_nan = build.fcmp_unordered("uno", args[0], args[0])
        kept = build.and_(build.select(is_nan, build.or_(bits, I32(0x400000)), grown), I32(0xFFFF0000))
        return build.bitcast(kept, F32)

    return types.float32(types.float32, types.int64, types.int64), codegen


@intrinsic
def float_from_bits(typingctx, bits):
    """The float32 with the bits of an int32."""

    def codegen(context, build, sig, args):
        return build.bitcast(args[0], F32)

    return types.float32(types.int32), codegen


@intrinsic
def load_float(typingctx, address):
    """The float32 at an address."""

    def codegen(context, build, sig, args):
        return load(build, args[0], 0, F32)

    return types.float32(types.uintp), codegen


@intrinsic
def store_float(typingctx, address, value):
    """Write a float32 at an address."""

    def codegen(context, build, sig, args):
        store(build, args[0], 0, args[1])
        return context.get_dummy_value()

    return types.void(types.uintp, types.float32), codegen


@intrinsic
def load_bfloat16(typingctx, address):
    """The bfloat16 at an address, as a float32."""

    def codegen(context, build, sig, args):
        return widened(build, load(build, args[0], 0, I16), 0)

    return types.float32(types.uintp), codegen


@intrinsic
def store_bfloat16(typingctx, address, value):
    """Write a float32 at an address as the nearest bfloat16."""

    def codegen(context, build, sig, args):
        store(build, args[0], 0, upper_halves(build, rounded(build, args[1], 0), 0))
        return context.get_dummy_value()

    return types.void(types.uintp, types.float32), codegen


@intrinsic
def fetch_add(typingctx, address):
    """The int64 at an address, which grows by one: how threads take tasks from a list, and say that they are done.

    Atomic. What was written before is seen by who reads the count after.
    """

    def codegen(context, build, sig, args):
        return build.atomic_rmw("add", build.inttoptr(args[0], I64.as_pointer()), I64(1), "acq_rel")

    return types.int64(types.uintp), codegen


@intrinsic
def wait_until(typingctx, address, value):
    """Returns when the int64 at an address is at least `value`; spins, for microseconds if all goes well.

    A thread that waits long lets others have its core: the one it waits for may have none.
    """

    def body(build, args):
        address, value = args
        entry = build.block
        again, wait, rest, end = (build.append_basic_block(name) for name in ("again", "wait", "rest", "end"))
        build.branch(again)
        build.position_at_end(again)
        turns = build.phi(I64)
        turns.add_incoming(I64(0), entry)
        count = build.load_atomic(build.inttoptr(address, I64.as_pointer()), "acquire", align=8)
        build.cbranch(build.icmp_signed(">=", count, value), end, wait)
        build.position_at_end(wait)
        following = build.add(turns, I64(1))
        if platform.machine().lower() in ("x86_64", "amd64"):
            build.call(declare(build, "llvm.x86.sse2.pause", ir.FunctionType(VOID, [])), [])
        turns.add_incoming(following, wait)
        build.cbranch(build.icmp_signed("==", build.and_(following, I64(SPINS - 1)), I64(0)), rest, again)
        build.position_at_end(rest)
        if sys.platform != "win32":
            build.call(declare(build, "sched_yield", ir.FunctionType(I32, [])), [])
        turns.add_incoming(following, rest)
        build.branch(again)
        build.position_at_end(end)

    return types.void(types.uintp, types.int64), call("llmpy_wait_until", [I64] * 2, body)


@intrinsic
def prefetch(typingctx, address, size, rows, stride):
    """Asks for `size` bytes of each of `rows` rows, `stride` bytes apart, into the second cache."""

    def body(build, args):
        start, size, rows, stride = args

        def fetch_row(i):
            row = build.add(start, build.mul(i, stride))
            loop(build, size, 64, lambda at: prefetch_line(build, build.add(row, at)))

        with build.if_then(build.icmp_signed(">", size, I64(0))):
            loop(build, rows, 1, fetch_row)

    kinds = (types.uintp, types.int64, types.int64, types.int64)
    return types.void(*kinds), call("llmpy_prefetch", [I64] * 4, body)
