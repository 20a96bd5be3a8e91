"""Instruction set of this processor, and the GEMM register tile (MR x NR) that fits it.

A tile of C stays in registers while the depth streams by: `rows` broadcast values of A against `vectors` vectors of B.
Its size is chosen so that the accumulators, the vectors of B and one broadcast fill the register file (32 registers, 16
for AVX2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from typing import Literal

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
    into the other.

    `bfloat16` says how it multiplies bfloat16: made float32 on the way into the panels, in pairs (vdpbf16ps), or in
    matrix tiles (AMX).
    """

    name: str
    tile: TileShape
    bfloat16: Literal["widened", "pairs", "matrix", "emulated matrix"] = "widened"
    own_gemm: bool = True  # False: large products go to np.matmul


_AVX512 = TileShape(8, 3, 16)
INSTRUCTION_SETS = {
    "amx": InstructionSet("amx", _AVX512, "matrix"),
    "avx512bf16": InstructionSet("avx512bf16", _AVX512, "pairs"),
    "avx512": InstructionSet("avx512", _AVX512),
    "avx2": InstructionSet("avx2", TileShape(4, 3, 8)),
    "neon": InstructionSet("neon", TileShape(4, 6, 4)),
    "numpy": InstructionSet("numpy", TileShape(4, 2, 4), own_gemm=False),
    "amx-emulated": InstructionSet("amx-emulated", TileShape(4, 6, 4), "emulated matrix"),
}
ASK_FOR_TILES = 158, 0x1023, 18  # Linux, x86-64: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
LLVM_BFLOAT = 15  # the first LLVM whose vdpbf16ps takes vectors of bfloat
AMX_REFUSED = "this machine has AMX, but its system does not let programs use it: going on without"


def available() -> list[str]:
    """Names of what this machine can run, fastest first. NEON's 4-wide tile runs anywhere, and so does the emulation
    of AMX, if only to be tested."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return ["neon", "numpy", "amx-emulated"]
    features = binding.get_host_cpu_features()
    found = []
    if features.get("avx512f"):
        found += ["amx"] if has_amx() and amx_is_permitted() else []
        found += ["avx512bf16"] if features.get("avx512bf16") and binding.llvm_version_info[0] >= LLVM_BFLOAT else []
        found += ["avx512"]
    found += ["avx2"] if features.get("avx2") and features.get("fma") else []
    return [*found, "numpy", "neon", "amx-emulated"]


def has_amx() -> bool:
    """Does the processor multiply matrix tiles of bfloat16?"""
    features = binding.get_host_cpu_features()
    return bool(features.get("amx-tile") and features.get("amx-bf16"))


def amx_is_permitted() -> bool:
    """Does the system let this process use the tiles' 8 KB of registers? It must ask; some virtual machines refuse."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        return ctypes.CDLL(None, use_errno=True).syscall(*ASK_FOR_TILES) == 0
    except (OSError, AttributeError):
        return False


def choose() -> InstructionSet:
    """The fastest set of this machine, or the one that LLMPY_ISA names. Raises UserError for one that it lacks."""
    asked = os.environ.get("LLMPY_ISA", "").strip().lower()
    if not asked:
        return INSTRUCTION_SETS[available()[0]]
    if asked not in INSTRUCTION_SETS:
        raise UserError(f"LLMPY_ISA={asked} is not an instruction set: use {', '.join(INSTRUCTION_SETS)}")
    if asked not in available():
        if asked == "amx" and has_amx():
            raise UserError(f"LLMPY_ISA=amx: {AMX_REFUSED.replace(': going on without', '')}; use LLMPY_ISA=avx512")
        raise UserError(f"LLMPY_ISA={asked}: this processor has no {asked}; it has {', '.join(available())}")
    return INSTRUCTION_SETS[asked]


def notice() -> str | None:
    """Returns a message for the user: AMX exists but may not be used. None where there is nothing to tell."""
    if os.environ.get("LLMPY_ISA", "").strip() or not has_amx() or amx_is_permitted():
        return None
    return AMX_REFUSED


ISA = choose()
