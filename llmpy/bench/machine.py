"""Description of the machine under a measurement: a time means nothing to others without it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "numba", "llvmlite", "torch")


def describe(threads: int) -> dict[str, Any]:
    """The machine and the software, in types that JSON can hold; `threads` is what the measurement uses."""
    from llmpy import __version__
    from llmpy.kernels import cpu

    return {
        "cpu": cpu_name(),
        "cores": cpu.physical_cores(),
        "threads": threads,
        "isa": cpu.ISA.name,
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {"llmpy": __version__, **{name: version for name in PACKAGES if (version := version_of(name))}},
    }


def summary(machine: dict[str, Any]) -> str:
    """One line for a person."""
    cores = f"{machine['threads']} of {machine['cores']} cores"
    versions = [f"{name} {version}" for name, version in ({"Python": machine["python"]} | machine["versions"]).items()]
    return ", ".join(
        [machine["cpu"], cores, machine["isa"], f"{machine['memory_gb']} GB", machine["system"], *versions]
    )


def cpu_name() -> str:
    """The processor's own name for itself, or what Python knows of it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Memory of the machine in bytes (0 where the system does not tell)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def version_of(package: str) -> str | None:
    """The version of an installed package, found without importing it; None where it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
