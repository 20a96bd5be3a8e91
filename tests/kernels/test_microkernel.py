"""The micro-kernels that this machine cannot run, compiled for the ones that can: what instructions come out."""

import re

import pytest
from llvmlite import binding, ir

from llmpy.kernels.cpu.emit import I64
from llmpy.kernels.cpu.isa import INSTRUCTION_SETS
from llmpy.kernels.cpu.microkernel import emit_tile

TARGETS = {
    "avx512": ("x86_64-linux-gnu", "skylake-avx512", r"vfmadd\d+ps.*%zmm", r"%zmm\d+, -?\d*\(%rsp\)"),
    "avx2": ("x86_64-linux-gnu", "haswell", r"vfmadd\d+ps.*%ymm", r"%ymm\d+, -?\d*\(%rsp\)"),
    "neon": ("aarch64-linux-gnu", "neoverse-n1", r"fmla\s+v\d+\.4s", r"str\s+q\d+, \[sp"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_tile_keeps_its_sums_in_registers(name):
    """One multiply-add a cell and step of the depth, and nothing spilled to the stack."""
    triple, cpu, multiply_add, spill = TARGETS[name]
    shape = INSTRUCTION_SETS[name].tile
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 6), "tile")
    build = ir.IRBuilder(function.append_basic_block())
    emit_tile(shape, build, function.args)
    build.ret_void()

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    assert len(re.findall(multiply_add, assembly)) == shape.rows * shape.vectors
    assert not re.findall(spill, assembly)
