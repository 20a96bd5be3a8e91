"""The micro-kernels that this machine cannot run, compiled for the ones that can: what instructions come out."""

import re
from types import SimpleNamespace

import pytest
from llvmlite import binding, ir
from numba import types

from llmpy.kernels.cpu.gemm import microkernel_amx
from llmpy.kernels.cpu.gemm.microkernel_vector import emit_tile
from llmpy.kernels.cpu.jit.isa import INSTRUCTION_SETS, LLVM_BFLOAT
from llmpy.kernels.cpu.jit.llvm_ir import I64

INTEL, ARM = "x86_64-linux-gnu", "aarch64-linux-gnu"
ZMM_SPILL = r"%zmm\d+, -?\d*\(%rsp\)"
TARGETS = [  # instruction set, machine, processor, its multiply-add, what a spill looks like
    ("avx512", INTEL, "skylake-avx512", r"vfmadd\d+ps.*%zmm", ZMM_SPILL),
    ("avx2", INTEL, "haswell", r"vfmadd\d+ps.*%ymm", r"%ymm\d+, -?\d*\(%rsp\)"),
    ("neon", ARM, "neoverse-n1", r"fmla\s+v\d+\.4s", r"str\s+q\d+, \[sp"),
    ("avx512bf16", INTEL, "sapphirerapids", r"vdpbf16ps.*%zmm", ZMM_SPILL),
    ("avx512bf16", INTEL, "znver4", r"vdpbf16ps.*%zmm", ZMM_SPILL),
]


def assembly_of(triple, cpu, emit):
    """What becomes of a function of six numbers, emit(build, arguments)."""
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 6), "tile")
    build = ir.IRBuilder(function.append_basic_block())
    emit(build, function.args)
    build.ret_void()

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    return machine.emit_assembly(binding.parse_assembly(str(module)))


@pytest.mark.parametrize(("name", "triple", "cpu", "multiply_add", "spill"), TARGETS)
def test_a_tile_keeps_its_sums_in_registers(name, triple, cpu, multiply_add, spill):
    """One multiply-add a cell and step of the depth, and nothing spilled to the stack."""
    shape, pairs = INSTRUCTION_SETS[name].tile, INSTRUCTION_SETS[name].bfloat16 == "pairs"
    if pairs and binding.llvm_version_info[0] < LLVM_BFLOAT:
        pytest.skip("this LLVM is too old for pairs of bfloat16")
    assembly = assembly_of(triple, cpu, lambda build, args: emit_tile(shape, build, args, pairs))
    assert len(re.findall(multiply_add, assembly)) == shape.rows * shape.vectors
    assert not re.findall(spill, assembly)


def test_the_matrix_tiles_of_amx():
    """Configured, used in a loop of two loads of A, two of B and four products, stored, and given back."""
    context = SimpleNamespace(get_dummy_value=lambda: None)

    def emit(build, args):
        for part in (microkernel_amx.make_begin(), microkernel_amx.make_tile(), microkernel_amx.make_end()):
            kinds = [types.int64] * 6 if part.__name__ == "tile" else []
            signature, codegen = part.__wrapped__(None, *kinds)
            codegen(context, build, signature, args if kinds else [])

    assembly = assembly_of(INTEL, "sapphirerapids", emit)
    used = re.findall(r"^\s+(ldtilecfg|tilezero|tileloadd|tdpbf16ps|tilestored|tilerelease)\b", assembly, re.MULTILINE)
    assert {name: used.count(name) for name in used} == {
        "ldtilecfg": 1, "tilezero": 4, "tileloadd": 4 + 4, "tdpbf16ps": 4, "tilestored": 4, "tilerelease": 1,
    }  # fmt: skip
    tile = assembly[assembly.index("llmpy_tile_amx:") :]
    loop = next(block for block in re.split(r"^\.LBB", tile, flags=re.MULTILINE) if "tdpbf16ps" in block)
    assert [name for name in re.findall(r"^\s+(t[a-z0-9]+)", loop, re.MULTILINE) if name != "testq"][:8] == [
        *["tileloadd"] * 4, *["tdpbf16ps"] * 4,
    ]  # fmt: skip
    assert microkernel_amx.CONFIG[0] == 1, "palette 1"
