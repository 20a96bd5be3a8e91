"""Causal attention of one layer, forward and backward, beside PyTorch's scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmpy import kernels
from llmpy.bench import machine, peers, timing
from llmpy.models.config import ModelConfig
from llmpy.models.precision import dtype
from llmpy.utils.progress_bar import bar


@dataclass(frozen=True)
class Heads:
    """B sequences of T tokens, NH heads of size hs, and NKV of keys and values."""

    B: int
    T: int
    NH: int
    hs: int
    NKV: int
    precision: str = "float32"

    def qkv(self) -> np.ndarray:
        """Random, [B, T, NH + 2 NKV, hs]."""
        shape = (self.B, self.T, self.NH + 2 * self.NKV, self.hs)
        values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return values.astype(dtype(self.precision), copy=False)

    def parts(self) -> list[int]:
        """Numbers of heads of q, k and v."""
        return [self.NH, self.NKV, self.NKV]


def our_attention(heads: dict[str, Any], threads: int) -> Callable[[], object]:
    shape = Heads(**heads)
    backend = kernels.start("cpu", threads, precision=shape.precision)
    qkv, dqkv = shape.qkv(), shape.qkv()
    ends = np.cumsum(shape.parts())[:-1]
    q, k, v, dq, dk, dv = (part for whole in (qkv, dqkv) for part in np.split(whole, ends, axis=2))
    y, dy = np.empty(q.shape, q.dtype), np.ones(q.shape, q.dtype)
    lse = np.empty((shape.B, shape.NH, shape.T), np.float32)

    def run() -> None:
        backend.attention_forward(y, lse, q, k, v)
        backend.attention_backward(dq, dk, dv, dy, q, k, v, y, lse)

    return run


def pytorch_attention(heads: dict[str, Any], threads: int) -> Callable[[], object]:
    """Returns PyTorch's attention step on separate q, k, v [B, NH, T, hs]; its gradients are dropped, not copied."""
    import torch

    from llmpy.bench.torch_peer.model import as_tensor

    torch.set_num_threads(threads)
    shape = Heads(**heads)
    parts = as_tensor(shape.qkv()).transpose(1, 2).split(shape.parts(), 1)
    q, k, v = (part.contiguous().requires_grad_() for part in parts)
    dy, grouped = torch.ones_like(q), shape.NH != shape.NKV

    def run() -> None:
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        torch.autograd.grad(y, (q, k, v), dy)

    return run


def bench(
    config: ModelConfig,
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
            kv_heads = config.kv_heads
            heads = asdict(Heads(batch_size, T, config.heads, config.head_size, kv_heads, precision))
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
