"""Which vector instructions this processor has, and the shape of the GEMM tile that fits their registers.

A tile of C stays in registers while the depth streams by: `rows` broadcast values of A against `vectors` vectors of B.
Its size is chosen so that the accumulators, the vectors of B and one broadcast fill the register file (32 registers, 16
for AVX2).
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from llvmlite import binding

from llmpy.errors import UserError


@dataclass(frozen=True)
class TileShape:
    """rows x (vectors of `width` floats)."""

    rows: int
    vectors: int
    width: int

    @property
    def columns(self) -> int:
        return self.vectors * self.width


@dataclass(frozen=True)
class InstructionSet:
    """A name for LLMPY_ISA and the tile that fits. A tile's columns are a multiple of its rows: attention turns one
    into the other."""

    name: str
    tile: TileShape
    own_gemm: bool = True  # False: large products go to np.matmul


INSTRUCTION_SETS = {
    "avx512": InstructionSet("avx512", TileShape(8, 3, 16)),
    "avx2": InstructionSet("avx2", TileShape(4, 3, 8)),
    "neon": InstructionSet("neon", TileShape(4, 6, 4)),
    "numpy": InstructionSet("numpy", TileShape(4, 2, 4), own_gemm=False),
}


def available() -> list[str]:
    """Names of what this machine can run, fastest first. NEON's 4-wide tile runs anywhere, if only to be tested."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return ["neon", "numpy"]
    features = binding.get_host_cpu_features()
    found = ["avx512"] if features.get("avx512f") else []
    found += ["avx2"] if features.get("avx2") and features.get("fma") else []
    return [*found, "numpy", "neon"]


def choose() -> InstructionSet:
    """The fastest set of this machine, or the one that LLMPY_ISA names. Raises UserError for one that it lacks."""
    asked = os.environ.get("LLMPY_ISA", "").strip().lower()
    if not asked:
        return INSTRUCTION_SETS[available()[0]]
    if asked not in INSTRUCTION_SETS:
        raise UserError(f"LLMPY_ISA={asked} is not an instruction set: use {', '.join(INSTRUCTION_SETS)}")
    if asked not in available():
        raise UserError(f"LLMPY_ISA={asked}: this processor has no {asked}; it has {', '.join(available())}")
    return INSTRUCTION_SETS[asked]


ISA = choose()
