"""The GPU's device on a driver without a GPU (fake_driver.c): scripts in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def build(folder: Path) -> Path:
    """The folder with the driver's library in it; skips where it cannot be made, or nothing would ask for it."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("the driver without a GPU is made by gcc, for Linux")
    if any(find_spec(name) is None for name in ("triton", "cuda")) or find_spec("cuda.core") is None:
        pytest.skip("the GPU's device needs Triton and cuda-core")
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, HERE / "fake_driver.c", "-ldl"], check=True)
    return folder


def run(driver: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script of Python, or a file of one, on that driver."""
    variables = {
        key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "LLMPY_CUDA_DEVICE")
    }
    variables |= {"LD_LIBRARY_PATH": str(driver), "TRITON_LIBCUDA_PATH": str(driver), "PYTHONPATH": str(ROOT)}
    variables |= {"TRITON_CACHE_DIR": str(driver / "cache"), **environment}
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


def told(driver: Path, script: str, **environment: str) -> dict:
    """The JSON that the script prints last."""
    done = run(driver, script, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
