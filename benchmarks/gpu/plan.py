"""The plan of a benchmark: sizes of everything, and the division of the time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SECTIONS = ("checks", "kernels", "peers", "steps", "losses", "generation")


@dataclass(frozen=True)
class Plan:
    """`seconds` for everything; `shares` are seconds too where all sections run, and relative where some do."""

    seconds: float
    shares: dict[str, float]
    ceilings: dict[str, int] = field(default_factory=lambda: {"copied": 2**30, "square": 8192})
    flush: int = 256 * 2**20
    checks: dict[str, Any] = field(default_factory=dict)
    kernels: dict[str, Any] = field(default_factory=dict)
    small: str = "d12"
    micro_batches: tuple[int, ...] = (16, 24, 32, 48, 64)
    peer_steps: tuple[tuple[int, str], ...] = ((32, "flash"), (64, "flash"), (64, "cuDNN"))
    large: str | None = "d48"
    large_batch: int = 16
    sequence_length: int = 1024
    steps: int = 12
    losses: tuple[str, int, int, int] = ("d12", 4, 64, 10)  # a model, B, T, steps
    generated: tuple[str, ...] = ("d12", "llama:110M")
    precisions: tuple[str, ...] = ("float32", "bfloat16", "q8")
    tokens: int = 256
    prompt: int = 1024


FULL = Plan(
    580,
    {"card": 25, "checks": 110, "kernels": 95, "peers": 50, "steps": 200, "losses": 60, "generation": 40},
    checks={"models": ["d12", "d48", "llama:1.1B"], "B": 2, "T": 144, "cache": 300, "matrix": [2304, 768]},
    kernels={
        "models": [["d12", 32, 1024], ["d48", 16, 1024], ["llama:110M", 32, 1024]], "logits": 4096,
        "attention": [[16, 1024, 16, 16, 64], [8, 2048, 16, 16, 64], [8, 2048, 16, 16, 128], [8, 2048, 32, 8, 128]],
        "sequences": [1, 8], "caches": [[1024, 12, 12, 64]], "matrix": [3072, 768],
    },
)  # fmt: skip
QUICK = Plan(
    200,
    {"card": 15, "checks": 45, "kernels": 30, "peers": 20, "steps": 60, "losses": 20, "generation": 10},
    checks={"models": ["d12"], "B": 2, "T": 144, "cache": 300, "matrix": [2304, 768]},
    kernels={
        "models": [["d12", 32, 1024]], "logits": 4096,
        "attention": [[16, 1024, 16, 16, 64], [8, 2048, 16, 16, 128]],
        "sequences": [1], "caches": [[1024, 12, 12, 64]], "matrix": [3072, 768],
    },
    micro_batches=(32,),
    peer_steps=((32, "flash"),),
    large=None,
    generated=("d12",),
    precisions=("bfloat16",),
)  # fmt: skip
