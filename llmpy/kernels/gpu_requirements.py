"""The requirements of the GPU kernels, part by part: the version found, or the one command that installs the part."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmpy.errors import UserError
from llmpy.kernels import gpu_detect

CLONE = Path(__file__).resolve().parents[2]  # or where packages are installed


def install_extra(name: str) -> str:
    """The command that adds an extra to this installation, from the clone it runs in or by the package's name."""
    what = f"-e '{CLONE}[{name}]'" if (CLONE / "pyproject.toml").is_file() else f"'llm.py[{name}]'"
    return f"pip install {what}"


EXTRA = install_extra("cuda")
EXTRA_OF_CUDA_12 = install_extra("cuda12")  # for drivers that know no CUDA 13


@dataclass(frozen=True)
class Part:
    """A requirement: `found` describes the installed part; if it is missing, `remedy` is the command that installs it.

    The kernels run without an `optional` part.
    """

    name: str
    found: str | None
    remedy: str = ""
    optional: bool = False

    @property
    def ok(self) -> bool:
        return self.found is not None


def of_gpu() -> list[Part]:
    """The requirements of a GPU run; a part comes after the parts it depends on."""
    driver = gpu_detect.ask()
    packages = [_package("Triton", "triton", "triton"), _package("cuda-core", "cuda-core", "cuda.core")]
    return [_driver(driver), *_cards(driver), *packages, _bindings(driver), _compiler(), _header(), _cublaslt()]


@cache
def missing() -> Part | None:
    """The first required part that is missing, or None. Checks once in a process."""
    return next((part for part in of_gpu() if not part.ok and not part.optional), None)


def check() -> None:
    """Raises UserError if a required part is missing; the message names the part and the remedy."""
    if is_interpreted():
        part = _package("Triton", "triton", "triton")
        lacks = None if part.ok else part
    else:
        lacks = missing()
    if lacks is not None:
        raise UserError(f"--device cuda: {lacks.name} is missing: {lacks.remedy} (llmpy doctor shows all it needs)")


def is_interpreted() -> bool:
    """Returns whether the GPU kernels run in Triton's interpreter, without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


# ---- the parts -----------------------------------------------------------------------------------------------------


def _driver(driver: gpu_detect.Driver | None) -> Part:
    name, remedy = f"NVIDIA's driver ({gpu_detect.LIBRARY})", _install("nvidia-driver-580-server", "nvidia-driver-cuda")
    if driver is None:
        return Part(name, None, f"{remedy}; in a container, start it with --gpus all")
    if driver.problem:
        return Part(name, None, f"it answers {driver.problem!r}; {remedy}, and start the machine anew")
    return Part(name, f"for CUDA {driver.cuda[0]}.{driver.cuda[1]}")


def _cards(driver: gpu_detect.Driver | None) -> list[Part]:
    if driver is None or not driver.cards:
        return [Part("an NVIDIA GPU", None, "use --device cpu; nvidia-smi -L lists what there is")]
    return [
        Part(
            f"GPU {card.ordinal}",
            f"{card.name}, {card.memory / 1e9:.0f} GB, capability {card.capability[0]}.{card.capability[1]}",
        )
        for card in driver.cards
    ]


def _package(name: str, package: str, module: str) -> Part:
    return Part(name, _version(package) if _is_there(module) else None, EXTRA)


def _bindings(driver: gpu_detect.Driver | None) -> Part:
    """The CUDA bindings; a driver runs bindings of its own CUDA version or an older one."""
    name, module = "cuda-bindings", "cuda.bindings"
    version = _version(name) if _is_there(module) else None
    if version is None or driver is None or driver.problem or int(version.split(".")[0]) <= driver.cuda[0]:
        return Part(name, version, EXTRA)
    return Part(f"cuda-bindings for CUDA {driver.cuda[0]} (there is {version})", None, EXTRA_OF_CUDA_12)


def _compiler() -> Part:
    """The C compiler that Triton uses to build a launcher for each kernel."""
    asked = os.environ.get("CC", "").split(" ")[0]
    found = shutil.which(asked) if asked else shutil.which("gcc") or shutil.which("clang")
    return Part("a C compiler (gcc)", found, f"{_install('gcc', 'gcc')}{', or unset CC' if asked else ''}")


def _header() -> Part:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    path = Path(sysconfig.get_paths()["include"]) / "Python.h"
    remedy = _install(f"python{version}-dev", f"python{version}-devel")
    return Part("Python.h", str(path) if path.is_file() else None, remedy)


def _cublaslt() -> Part:
    """cuBLASLt, NVIDIA's GEMM; without it, the Triton GEMM runs."""
    name, found = "cuBLASLt (without it, products are Triton's)", None
    if _is_there("nvmath.bindings.cublasLt") and _is_there("cuda.pathfinder"):
        from cuda.pathfinder import load_nvidia_dynamic_lib

        try:
            found = load_nvidia_dynamic_lib("cublasLt").abs_path
        except Exception:  # its own class for a library that is not found is younger than the package
            found = None
    return Part(name, found, EXTRA, optional=True)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # the package around it is missing, or was half removed
        return False


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of no known version"


def _install(debian: str, fedora: str) -> str:
    """The command of this system that installs a package."""
    words = f"dnf install {fedora}" if shutil.which("dnf") else f"apt install {debian}"
    return words if hasattr(os, "geteuid") and os.geteuid() == 0 else f"sudo {words}"
