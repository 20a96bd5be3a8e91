"""Backends by name: which one a --device means, loading a backend, and preparing it for a run."""

from __future__ import annotations

import re
from functools import cache

from llmpy.errors import UserError
from llmpy.kernels import gpu_detect, gpu_requirements
from llmpy.kernels.contract import Backend
from llmpy.utils import progress_bar

BACKENDS = ("reference", "cpu", "cuda")
_BACKEND = re.compile(rf"({'|'.join(BACKENDS)})|cuda:(\d{{1,4}})")


def is_device(name: str) -> bool:
    """Returns whether --device accepts this name."""
    return name == "auto" or _BACKEND.fullmatch(name) is not None


@cache
def backend_of(device: str) -> str:
    """Returns the backend for a --device; auto means cuda if there is a GPU with everything that the kernels need.

    Prints, once, what is missing to use a GPU. Loads no backend, and costs nothing on a machine without a GPU.
    """
    if device != "auto":
        return device
    driver = None if gpu_requirements.is_interpreted() else gpu_detect.ask()
    if driver is None or not driver.cards:
        return "cpu"
    if lacks := gpu_requirements.missing():
        progress_bar.note(
            f"computing on the CPU: for the {driver.cards[0].name}, {lacks.name} is missing: {lacks.remedy}"
        )
        return "cpu"
    return "cuda"


def load(backend: str) -> Backend:
    """Imports and returns a backend; "cuda:1" is "cuda" on the second GPU.

    Raises UserError for an unknown name, and if the GPU, or something that the GPU kernels need, is missing.
    """
    if (match := _BACKEND.fullmatch(backend)) is None:
        raise UserError(f"no kernels for {backend!r}: use auto, {', '.join(BACKENDS)}, or cuda:N for the N-th GPU")
    if match[1] == "reference":
        from llmpy.kernels import reference

        return reference
    if match[1] == "cpu":
        from llmpy.kernels import cpu

        return cpu
    gpu_requirements.check()
    from llmpy.kernels import cuda

    if match[2]:
        cuda.device.choose(int(match[2]))
    return cuda


def start(backend: str, threads: int | None = None, precision: str = "float32") -> Backend:
    """Loads a backend and prepares it: opens the device, sets the threads, compiles the kernels with a progress bar.

    Raises UserError for an unknown backend, a missing GPU, or more threads than the machine has.
    """
    module = load(backend)
    module.open_device(precision)
    module.set_threads(threads)
    if notice := module.notice():
        progress_bar.note(notice)
    with progress_bar.bar("compiling the kernels, once on this machine", unit="kernels") as bar:

        def report(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.advance(done - bar.done)

        module.compile_all(report, precision)
    return module
