"""Say what this installation has, for the CPU and for a GPU, and the one command that mends whatever is missing."""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llmpy.errors import UserError
from llmpy.kernels.gpu_requirements import Part

EXAMPLES = """examples:
  llmpy doctor                     a line for each part: ok, or missing and how to mend it
  llmpy doctor --json              the same for a program

The exit status is 0 if this machine can train on something, be it a GPU or the CPU, and 1 if not.
"""
COLORS = {"ok": "green", "missing": "red", "optional": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from llmpy.kernels import gpu_requirements

    parts = {"cpu": of_cpu(), "gpu": gpu_requirements.of_gpu()}
    usable = {name: all(part.ok or part.optional for part in of) for name, of in parts.items()}
    best = "gpu" if usable["gpu"] else "cpu" if usable["cpu"] else None
    if args.json:
        told = {name: {"usable": usable[name], "parts": [as_json(part) for part in of]} for name, of in parts.items()}
        print(json.dumps({"trains_on": best, **told}, indent=2))
    else:
        print_parts(parts, usable)
        print(f"\nllmpy train uses the {best.upper()} here" if best else "\nnothing here can train yet: mend the above")
    return 0 if best else 1


def of_cpu() -> list[Part]:
    """Checks the parts that training on the CPU needs."""
    return [Part("Python", platform.python_version()), _package("numpy"), _package("numba"), _processor()]


def _package(name: str) -> Part:
    try:
        return Part(name, version(name))
    except PackageNotFoundError:
        return Part(name, None, "pip install llm.py")


def _processor() -> Part:
    """Describes the processor, with the instruction set of its kernels."""
    name = "processor"
    try:
        from llmpy.kernels import cpu
    except ImportError as error:
        return Part(name, None, f"pip install --force-reinstall llm.py ({error})")
    except UserError as error:  # LLMPY_ISA names what it has not
        return Part(name, None, str(error))
    cores = cpu.physical_cores()
    return Part(name, f"{cores} core{'s' if cores > 1 else ''}, instructions {cpu.ISA.name}")


def as_json(part: Part) -> dict[str, Any]:
    told = {"name": part.name, "ok": part.ok, "found": part.found, "optional": part.optional}
    return told if part.ok else {**told, "remedy": part.remedy}


def print_parts(parts: dict[str, list[Part]], usable: dict[str, bool]) -> None:
    """A line for each; in colours on a terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for name, of in parts.items():
        console.print(f"[bold]{name.upper()}[/bold]: {'can train' if usable[name] else 'cannot train'}")
        for part in of:
            state = "ok" if part.ok else "optional" if part.optional else "missing"
            console.print(f"  [{COLORS[state]}]{state:8}[/] ", end="")
            console.print(f"{part.name}: {part.found if part.ok else part.remedy}", markup=False)
