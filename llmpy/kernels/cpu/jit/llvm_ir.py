"""Words of LLVM IR that the emitted kernels share. Addresses are integers; offsets count 4-byte words."""

from __future__ import annotations

from llvmlite import ir

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()
VOID = ir.VoidType()


class _BFloat(ir.HalfType):
    """LLVM's bfloat, which llvmlite has no name for."""

    intrinsic_name = "bf16"

    def __str__(self):
        return "bfloat"


_BFloat._create_instance()
BF16 = _BFloat()


def call(name, argument_types, body):
    """Code generation for a call of the LLVM function `name`; see `define`."""

    def codegen(context, build, sig, args):
        build.call(define(build, name, argument_types, body), args)
        return context.get_dummy_value()

    return codegen


def define(build, name, argument_types, body):
    """The LLVM function `name`, which is built where a module does not have it yet: body(builder, arguments).

    It is not inlined: a copy at each of its call sites would only cost compile time.
    """
    function = build.module.globals.get(name)
    if function is None:
        function = ir.Function(build.module, ir.FunctionType(VOID, argument_types), name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block("entry"))
        body(inner, function.args)
        inner.ret_void()
    return function


def declare(build, name, function_type):
    """The function of this name in the module being built: an intrinsic of LLVM, or a symbol of the process."""
    return build.module.globals.get(name) or ir.Function(build.module, function_type, name)


def load(build, address, offset, kind):
    """A number or vector of the type `kind`, aligned no more than its element."""
    return build.load(_pointer(build, address, offset, kind), align=_alignment(kind))


def store(build, address, offset, value):
    """Returns the instruction, for what may be said of it."""
    return build.store(value, _pointer(build, address, offset, value.type), align=_alignment(value.type))


def loop(build, limit, step, body):
    """body(i) for i = 0, step, 2 step ... below the limit, and for 0 in any case."""
    entry, again, end = build.block, build.append_basic_block("again"), build.append_basic_block("end")
    build.branch(again)
    build.position_at_end(again)
    i = build.phi(I64)
    body(i)
    following = build.add(i, I64(step))
    i.add_incoming(I64(0), entry)
    i.add_incoming(following, build.block)  # the body may have ended in a block of its own
    build.cbranch(build.icmp_signed("<", following, limit), again, end)
    build.position_at_end(end)


def stream_past_caches(build, stored, size):
    """Makes a store of so many bytes one that goes to memory: its address must be a multiple of them."""
    stored.align = size
    stored.set_metadata("nontemporal", build.module.add_metadata([I32(1)]))


def prefetch_line(build, address, write=False):
    """Asks for the cache line of an address: to be read, into the second cache, or to be written, into the first."""
    pointer = ir.PointerType(I8)
    fetch = declare(build, "llvm.prefetch.p0", ir.FunctionType(VOID, [pointer, I32, I32, I32]))
    level = 3 if write else 2
    build.call(fetch, [build.inttoptr(address, pointer), I32(int(write)), I32(level), I32(1)])


def _pointer(build, address, offset, kind):
    if offset:
        address = build.add(address, I64(offset * 4))
    return build.inttoptr(address, kind.as_pointer())


def _alignment(kind):
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    return {I8: 1, I16: 2}.get(element, 4)


def lanes(indices):
    """A vector of constants, to shuffle by."""
    return ir.Constant(ir.VectorType(I32, len(indices)), [I32(i) for i in indices])


def broadcast(build, scalar, width):
    """A vector of `width` times the scalar."""
    undefined = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
    return build.shuffle_vector(build.insert_element(undefined, scalar, I32(0)), undefined, lanes([0] * width))


def splat(kind, width, value):
    """A constant: `width` times the value, of the type `kind`."""
    return ir.Constant(ir.VectorType(kind, width), [kind(value)] * width)


def widened(build, halves, width):
    """bfloat16 as <width x i16> -> <width x float>; a scalar where width is 0."""
    i32, f32, sixteen = _types(width)
    return build.bitcast(build.shl(build.zext(halves, i32), sixteen), f32)


def rounded(build, floats, width):
    """float32 -> the bits of the nearest bfloat16, ties to even, in the upper half of i32; NaN stays NaN.

    In whole numbers, so that every processor rounds the same way: vcvtneps2bf16 would flush the tiniest to zero.
    """
    i32, _, sixteen = _types(width)

    def constant(value):
        return I32(value) if width == 0 else splat(I32, width, value)

    bits = build.bitcast(floats, i32)
    odd = build.and_(build.lshr(bits, sixteen), constant(1))
    nearest = build.add(build.add(bits, constant(0x7FFF)), odd)
    is_nan = build.fcmp_unordered("uno", floats, floats)
    return build.select(is_nan, build.or_(bits, constant(0x400000)), nearest)


def upper_halves(build, words, width):
    """The upper 16 bits of each i32, as i16."""
    _, _, sixteen = _types(width)
    return build.trunc(build.lshr(words, sixteen), I16 if width == 0 else ir.VectorType(I16, width))


def _types(width):
    """i32, float, and the constant 16 of that many lanes; of a scalar where width is 0."""
    if width == 0:
        return I32, F32, I32(16)
    return ir.VectorType(I32, width), ir.VectorType(F32, width), splat(I32, width, 16)
