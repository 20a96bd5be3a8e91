"""The innermost loops of every matrix product, emitted as LLVM IR: what a C library would write in assembly.

`make_tile` gives C[rows, columns] (+)= A^T B over packed panels, all accumulators in registers. `make_transpose` and
`make_copy` move a few vectors at a time while panels are packed. Addresses are integers, strides count floats.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmpy.kernels.cpu.isa import TileShape

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
# How a tile ends: it is written to C; added to C; or written past the caches, for what is not read again soon, which
# spares memory the read of what is overwritten: C and its rows must begin at whole vectors.
STORE, ADD, STREAM = 0, 1, 2


def make_tile(shape: TileShape) -> Any:
    """The micro-kernel of a tile shape: tile(depth, a, b, c, ldc, ending), depth >= 1.

    a [depth, rows], b [depth, columns], c [rows, columns] with rows `ldc` apart. Endings: see STORE, ADD and STREAM.
    """

    @intrinsic
    def tile(typingctx, depth, a, b, c, ldc, ending):
        signature = types.void(types.int64, types.uintp, types.uintp, types.uintp, types.int64, types.int64)
        name = f"llmpy_tile_{shape.rows}x{shape.vectors}x{shape.width}"
        return signature, _call(name, [I64] * 6, lambda build, args: emit_tile(shape, build, args))

    return tile


def emit_tile(shape: TileShape, build: ir.IRBuilder, args: Any) -> None:
    """The body of a tile: a loop over the depth with every cell of C in a register, then one store or addition to
    memory."""
    depth, a, b, c, ldc, ending = args
    VEC = ir.VectorType(F32, shape.width)
    cells = [(i, j) for i in range(shape.rows) for j in range(shape.vectors)]
    # fmuladd: one instruction where the processor has it, two where it has not.
    fma = _declare(build, f"llvm.fmuladd.v{shape.width}f32", ir.FunctionType(VEC, [VEC] * 3))
    entry = build.block
    loop, store, add, stream, end = (build.append_basic_block(n) for n in ("depth", "store", "add", "stream", "end"))
    build.branch(loop)

    build.position_at_end(loop)
    k = build.phi(I64)
    sums = {cell: build.phi(VEC) for cell in cells}
    panel_a = build.add(a, build.mul(k, I64(shape.rows * 4)))
    panel_b = build.add(b, build.mul(k, I64(shape.columns * 4)))
    columns = [_load(build, panel_b, j * shape.width, VEC) for j in range(shape.vectors)]
    grown = {}
    for i in range(shape.rows):
        value = _broadcast(build, _load(build, panel_a, i, F32), shape.width)
        for j in range(shape.vectors):
            grown[i, j] = build.call(fma, [value, columns[j], sums[i, j]])
    k_next = build.add(k, I64(1))
    k.add_incoming(I64(0), entry)
    k.add_incoming(k_next, loop)
    for cell in cells:
        sums[cell].add_incoming(ir.Constant(VEC, None), entry)
        sums[cell].add_incoming(grown[cell], loop)
    done = build.append_basic_block("done")
    build.cbranch(build.icmp_signed("<", k_next, depth), loop, done)

    build.position_at_end(done)
    choice = build.switch(ending, store)
    choice.add_case(I64(ADD), add)
    choice.add_case(I64(STREAM), stream)
    for block in (store, add, stream):
        build.position_at_end(block)
        for i, j in cells:
            row, value = build.add(c, build.mul(ldc, I64(i * 4))), grown[i, j]
            if block is add:
                value = build.fadd(value, _load(build, row, j * shape.width, VEC))
            stored = _store(build, row, j * shape.width, value)
            if block is stream:
                stored.align = shape.width * 4
                stored.set_metadata("nontemporal", build.module.add_metadata([I32(1)]))
        build.branch(end)
    build.position_at_end(end)


def make_transpose(size: int) -> Any:
    """transpose(source, source_stride, target, target_stride): a size x size block; size is a power of two.

    Rows are merged with the row `step` below, step = 1, 2, 4 ...: log2(size) rounds of two-source shuffles.
    """

    @intrinsic
    def transpose(typingctx, source, source_stride, target, target_stride):
        signature = types.void(types.uintp, types.int64, types.uintp, types.int64)
        return signature, _call(
            f"llmpy_transpose_{size}", [I64] * 4, lambda build, args: _emit_transpose(size, build, args)
        )

    return transpose


def _emit_transpose(size: int, build: ir.IRBuilder, args: Any) -> None:
    source, source_stride, target, target_stride = args
    VEC = ir.VectorType(F32, size)
    block = [_load(build, build.add(source, build.mul(source_stride, I64(i * 4))), 0, VEC) for i in range(size)]
    step = 1
    while step < size:
        low = [lane if not lane & step else size + lane - step for lane in range(size)]
        high = [lane + step if not lane & step else size + lane for lane in range(size)]
        for i in range(size):
            if not i & step:
                upper, lower = block[i], block[i + step]
                block[i] = build.shuffle_vector(upper, lower, _lanes(low))
                block[i + step] = build.shuffle_vector(upper, lower, _lanes(high))
        step *= 2
    for i, row in enumerate(block):
        _store(build, build.add(target, build.mul(target_stride, I64(i * 4))), 0, row)


def make_copy(size: int, width: int) -> Any:
    """copy(source, target): `size` floats, in vectors of at most `width`."""
    pieces = []
    start = 0
    while start < size:
        piece = min(width, 1 << ((size - start).bit_length() - 1))
        pieces.append((start, piece))
        start += piece

    @intrinsic
    def copy(typingctx, source, target):
        def codegen(context, build, sig, args):
            for start, piece in pieces:
                _store(build, args[1], start, _load(build, args[0], start, ir.VectorType(F32, piece)))
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp), codegen

    return copy


@intrinsic
def load_float(typingctx, address):
    """The float32 at an address."""

    def codegen(context, build, sig, args):
        return _load(build, args[0], 0, F32)

    return types.float32(types.uintp), codegen


@intrinsic
def store_float(typingctx, address, value):
    """Write a float32 at an address."""

    def codegen(context, build, sig, args):
        _store(build, args[0], 0, args[1])
        return context.get_dummy_value()

    return types.void(types.uintp, types.float32), codegen


@intrinsic
def float_from_bits(typingctx, bits):
    """The float32 with the bits of an int32."""

    def codegen(context, build, sig, args):
        return build.bitcast(args[0], F32)

    return types.float32(types.int32), codegen


@intrinsic
def fetch_add(typingctx, address):
    """The int64 at an address, which grows by one: how threads take tasks from a list. Atomic."""

    def codegen(context, build, sig, args):
        return build.atomic_rmw("add", build.inttoptr(args[0], I64.as_pointer()), I64(1), "monotonic")

    return types.int64(types.uintp), codegen


def _call(name, argument_types, body):
    """Code generation for a call of the LLVM function `name`, which is built where a module does not have it yet.

    It is not inlined: a copy at each of its call sites would only cost compile time.
    """

    def codegen(context, build, sig, args):
        function = build.module.globals.get(name)
        if function is None:
            function = ir.Function(build.module, ir.FunctionType(ir.VoidType(), argument_types), name)
            function.linkage = "linkonce_odr"
            function.attributes.add("noinline")
            inner = ir.IRBuilder(function.append_basic_block("entry"))
            body(inner, function.args)
            inner.ret_void()
        build.call(function, args)
        return context.get_dummy_value()

    return codegen


def _declare(build, name, function_type):
    return build.module.globals.get(name) or ir.Function(build.module, function_type, name)


def _pointer(build, address, offset, kind):
    if offset:
        address = build.add(address, I64(offset * 4))
    return build.inttoptr(address, kind.as_pointer())


def _load(build, address, offset, kind):
    return build.load(_pointer(build, address, offset, kind), align=4)


def _store(build, address, offset, value):
    return build.store(value, _pointer(build, address, offset, value.type), align=4)


def _lanes(indices):
    return ir.Constant(ir.VectorType(I32, len(indices)), [I32(i) for i in indices])


def _broadcast(build, scalar, width):
    undefined = ir.Constant(ir.VectorType(F32, width), ir.Undefined)
    return build.shuffle_vector(build.insert_element(undefined, scalar, I32(0)), undefined, _lanes([0] * width))
