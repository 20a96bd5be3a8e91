"""PyTorch as the peer: as pip installs it, or tuned as an expert would, and which of the two counts."""

from __future__ import annotations

import ctypes.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpy.bench.machine import version_of
from llmpy.errors import UserError

if TYPE_CHECKING:
    from llmpy.bench.torch_peer.model import TorchModel

TCMALLOC = "libtcmalloc_minimal.so.4"
FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
MODES = ("best", "installed", "tuned", "all")


@dataclass(frozen=True)
class Peer:
    """One way to run PyTorch; `environment` is what makes it tuned."""

    name: str
    compiled: bool
    environment: dict[str, str]


def torch_peers(mode: str, compiled: bool = True) -> list[Peer]:
    """The ways to run PyTorch that `mode` asks for ("best" is tuned where that can be had); the fastest one counts.

    Raises UserError where PyTorch is missing, or tcmalloc and it was asked for.
    """
    require_torch()
    allocator = find_tcmalloc()
    if allocator is None and mode == "tuned":
        raise UserError(
            f"PyTorch is tuned with {TCMALLOC}, which is not here: install it (Debian: libtcmalloc-minimal4)"
        )
    settings = {"installed": {}, "tuned": {"LD_PRELOAD": allocator or "", "THP_MEM_ALLOC_ENABLE": "1"}}
    kinds = {
        "best": ["tuned" if allocator else "installed"],
        "all": ["installed", "tuned"] if allocator else ["installed"],
    }.get(mode, [mode])
    ways = [("eager", False), ("compiled", True)] if compiled else [("eager", False)]
    return [Peer(f"PyTorch {kind}, {way}", is_compiled, settings[kind]) for kind in kinds for way, is_compiled in ways]


def require_torch() -> None:
    if version_of("torch") is None:
        raise UserError("PyTorch is not installed here: leave out --against torch, or pip install torch")


def torch_model(config: Any) -> TorchModel:
    """The config's family in PyTorch, with random values, and GPT-2's vocabulary padded."""
    from llmpy.bench.torch_peer.gpt2 import TorchGPT2
    from llmpy.bench.torch_peer.llama import TorchLlama

    return TorchLlama(config) if config.family == "llama" else TorchGPT2(config, padded=True)


def find_tcmalloc() -> str | None:
    """The path, or the name that the loader knows, of the allocator; None where it is not installed."""
    for folder in FOLDERS:
        if (path := Path(folder) / TCMALLOC).exists():
            return str(path)
    return ctypes.util.find_library("tcmalloc_minimal")


def thread_settings(threads: int) -> dict[str, str]:
    """Environment that gives any numerical library so many threads, which sleep when they have waited for a moment."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {"KMP_BLOCKTIME": "20"}
