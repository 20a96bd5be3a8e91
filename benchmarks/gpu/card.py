"""The card, what runs it, and its ceilings: the speed of a copy in its memory, and of a large product in bfloat16."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from llmpy import __version__
from llmpy.bench.machine import cpu_name, memory_bytes, version_of
from llmpy.kernels import gpu_detect, gpu_specs

PACKAGES = (
    "numpy",
    "triton",
    "cuda-core",
    "cuda-bindings",
    "nvmath-python",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "torch",
)


def describe() -> dict[str, Any]:
    """The card that is computed on and the software, in types that JSON can hold; nothing is opened for it."""
    driver = gpu_detect.ask()
    assert driver is not None  # or there would have been nothing to measure
    card = driver.cards[0]
    peak = gpu_specs.peak(card.name)
    return {
        "name": card.name,
        "capability": f"{card.capability[0]}.{card.capability[1]}",
        "memory_gb": round(card.memory / 1e9, 1),
        "cuda": f"{driver.cuda[0]}.{driver.cuda[1]}",
        **_told_by_smi(),
        "peak_tflops": peak and peak.bfloat16,
        "peak_gb_per_s": peak and peak.bandwidth,
        "cpu": cpu_name(),
        "host_memory_gb": round(memory_bytes() / 1e9, 1),
        "versions": {"llmpy": __version__, **{name: found for name in PACKAGES if (found := version_of(name))}},
    }


def _told_by_smi() -> dict[str, str]:
    """Facts that only nvidia-smi reports, if it is installed: driver release and power limit."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    command.append(f"--id={os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')[0] or 0}")
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(("driver", "power_limit", "clock"), (part.strip() for part in said.split(",")), strict=False))


def ceilings(copied: int, square: int, flush: int) -> Iterator[dict[str, float]]:
    """Runs in a child process. Measures bytes/s of a copy of `copied` bytes (reads plus writes), and FLOP/s of a matmul
    of `square` rows and columns with the fastest GEMM."""
    import ml_dtypes
    import numpy as np

    from benchmarks.gpu.arrays import POOL, repeat
    from benchmarks.gpu.stopwatch import Stopwatch
    from llmpy.kernels import cuda
    from llmpy.kernels.cuda.runtime.array import DeviceArray, empty

    watch, (to, source) = Stopwatch(flush), empty(2, copied, dtype=np.uint8)
    yield {"copy_gb_per_s": 2 * copied / watch.seconds(lambda: cuda.copy(to, source)) / 1e9}
    pool = DeviceArray.of(np.random.default_rng(0).standard_normal(min(POOL, square**2)).astype(ml_dtypes.bfloat16))
    x, w, y = (empty(square, square, dtype=ml_dtypes.bfloat16) for _ in range(3))
    for array in (x, w):
        repeat(array, pool)
    with cuda.tuning():
        cuda.linear_forward(y, x, w)
    yield {"gemm_tflops": 2 * square**3 / watch.seconds(lambda: cuda.linear_forward(y, x, w)) / 1e12}
