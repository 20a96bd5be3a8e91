"""Causal attention of one layer, forward and backward, beside PyTorch's scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmpy import kernels
from llmpy.bench import machine, peers, timing
from llmpy.config import GPT2Config
from llmpy.precision import dtype
from llmpy.progress import bar


@dataclass(frozen=True)
class Heads:
    """B sequences of T tokens, NH heads of size hs."""

    B: int
    T: int
    NH: int
    hs: int
    precision: str = "float32"

    def qkv(self) -> np.ndarray:
        """Random, [B, T, 3, NH, hs]."""
        shape = (self.B, self.T, 3, self.NH, self.hs)
        values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return values.astype(dtype(self.precision), copy=False)


def our_attention(heads: dict[str, Any], threads: int) -> Callable[[], object]:
    shape = Heads(**heads)
    backend = kernels.start("cpu", threads, precision=shape.precision)
    qkv, dqkv = shape.qkv(), shape.qkv()
    q, k, v, dq, dk, dv = (a[:, :, i] for a in (qkv, dqkv) for i in range(3))
    y, dy = np.empty(q.shape, q.dtype), np.ones(q.shape, q.dtype)
    lse = np.empty((shape.B, shape.NH, shape.T), np.float32)

    def run() -> None:
        backend.attention_forward(y, lse, q, k, v)
        backend.attention_backward(dq, dk, dv, dy, q, k, v, y, lse)

    return run


def pytorch_attention(heads: dict[str, Any], threads: int) -> Callable[[], object]:
    """On q, k and v of their own, [B, NH, T, hs] as it likes them best; gradients are dropped, not copied."""
    import torch

    from llmpy.bench.torch_gpt2 import as_tensor

    torch.set_num_threads(threads)
    parts = as_tensor(Heads(**heads).qkv()).permute(2, 0, 3, 1, 4)
    q, k, v = (part.contiguous().requires_grad_() for part in parts)
    dy = torch.ones_like(q)

    def run() -> None:
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(y, (q, k, v), dy)

    return run


def bench(
    config: GPT2Config,
    batch_size: int,
    lengths: Sequence[int],
    threads: int,
    rounds: int,
    rival: peers.Peer | None,
    precision: str = "float32",
) -> dict[str, Any]:
    """Attention of one layer at each length, ours and the rival's in turn."""
    kernels.start("cpu", threads, precision=precision)
    results: list[dict[str, Any]] = []
    with ExitStack() as stack, bar("measuring", len(lengths) * rounds * (2 if rival else 1), "turns") as shown:
        settings = peers.thread_settings(threads)
        us = stack.enter_context(timing.worker("llm.py"))
        them = stack.enter_context(timing.worker(rival.name, rival.environment | settings)) if rival else None
        for T in lengths:
            heads = asdict(Heads(batch_size, T, config.heads, config.head_size, precision))
            us.prepare("llmpy.bench.attention:our_attention", heads=heads, threads=threads)
            if them is None:
                ours = timing.interleave([us], rounds, shown.advance)[0]
                results.append(heads | {"ours_ms": timing.milliseconds(ours)})
                continue
            them.prepare("llmpy.bench.attention:pytorch_attention", heads=heads, threads=threads)
            ours, theirs = timing.interleave([us, them], rounds, shown.advance)
            results.append(heads | timing.comparison(them.name, ours, theirs))
    worst = max(results, key=lambda result: result.get("ratio", 0))
    return {
        "benchmark": "attention",
        "precision": precision,
        "rounds": rounds,
        "ours_ms": worst["ours_ms"],
        "peer": worst.get("name"),
        "peer_ms": worst.get("peer_ms"),
        "ratio": worst.get("ratio"),
        "lengths": results,
        "machine": machine.describe(threads),
    }
