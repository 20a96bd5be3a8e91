"""Kernels compiled for GPUs that this machine has not, and what the machine code says of them.

Each compiled_FAMILY.py beside this file has a list `CASES`; test_compiled.py compiles them all in one process without
TRITON_INTERPRET, which is read where a kernel is decorated: interpreting and compiling exclude each other.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CAPABILITIES = (80, 90, 100)  # A100, H100 and H200, B200
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}  # bytes a program
TENSOR_MEMORY_LIMIT = 512  # columns, of sm_100
TENSOR_CORES = {80: ("HMMA",), 86: ("HMMA",), 89: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA", "HMMA"), 120: ("HMMA",)}
# An instruction of the listing: its address, perhaps a predicate, then its name, of which the first part counts.
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched on a GPU: the types of its arguments, its constants, its configuration.

    `signature` has Triton's types ("*bf16", "i32", "fp32"); the kernel's other arguments are in `constants` (so is an
    argument that is always 1, such as the stride of a last axis: a launch makes it a constant). `aligned` names
    the addresses and numbers that 16 divides; `options` are num_warps and num_stages. A kernel that is configured by
    the capability has a case for each, under one name. `tensor_cores` may name the instruction: products of fewer than
    64 rows are "HMMA" everywhere.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    tensor_cores: bool | str = False
    capabilities: tuple[int, ...] = CAPABILITIES


@dataclass
class Report:
    """`spills` counts the instructions that move registers to local memory and back; `stack` is its bytes a thread."""

    registers: int
    stack: int
    spills: int
    shared: int
    tensor_memory: int
    sass: Counter[str]


def compiled(kernel, signature, constants, capability, aligned=(), **options) -> Report:
    """The report on a `@triton.jit` function compiled for a compute capability such as 90, with num_warps and so on."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in constants},
    )
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True, **options})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(made.asm["cubin"])
        cubin.flush()
        usage = _cuobjdump("-res-usage", cubin.name)
        listing = _cuobjdump("-sass", cubin.name)
    resources = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", usage)}
    sass = Counter(INSTRUCTION.findall(listing))
    return Report(
        registers=resources["REG"],
        stack=resources["STACK"],
        spills=sass["LDL"] + sass["STL"],
        shared=made.metadata.shared,
        tensor_memory=getattr(made.metadata, "tmem_size", None) or 0,
        sass=sass,
    )


def _cuobjdump(*arguments: str) -> str:
    """What NVIDIA's tool in Triton's wheel prints; it reads the code of every capability that Triton writes."""
    from triton import knobs

    done = subprocess.run([knobs.nvidia.cuobjdump.path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def all_cases() -> dict[str, tuple[Case, int]]:
    """Every case of every family for each of its capabilities, by its name in the tests."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("compiled_*.py")):
        family = path.stem.removeprefix("compiled_")
        for case in importlib.import_module(f"tests.kernels.cuda.{path.stem}").CASES:
            for capability in case.capabilities:
                found[f"{family}-{case.name}-sm_{capability}"] = case, capability
    return found


def compile_apart(names: list[str]) -> dict[str, dict[str, Any]]:
    """The reports, or {"error": text}, of the cases named, from a process that compiles instead of interpreting."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        results.write_text(json.dumps(names))
        program = f"from tests.kernels.cuda import compiling; compiling.compile_named({str(results)!r})"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(results.read_text())


def compile_named(path: str) -> None:
    """In the process of its own: the list of names in a JSON file is replaced by the reports."""
    names = json.loads(Path(path).read_text())
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        reports = pool.map(_report, names, chunksize=1)
    Path(path).write_text(json.dumps(dict(zip(names, reports, strict=True))))


def _report(name: str) -> dict[str, Any]:
    case, capability = all_cases()[name]
    try:
        report = compiled(case.kernel, case.signature, case.constants, capability, case.aligned, **case.options)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return vars(report)
