"""A training step: forward, loss, backward, AdamW. Ours, and PyTorch's, on the same shapes and random tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmpy import kernels
from llmpy.bench import machine, peers, timing
from llmpy.errors import UserError
from llmpy.models.config import ModelConfig
from llmpy.models.registry import config_from_dict
from llmpy.utils.progress_bar import Bar, bar

LR = 1e-4


@dataclass(frozen=True)
class Step:
    """A measurement of training steps: a model, B sequences of T tokens; `clip` is the maximum norm, 0 for none."""

    config: ModelConfig
    batch_size: int
    sequence_length: int
    threads: int
    recompute: int = 0
    clip: float = 0.0
    precision: str = "float32"

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Step:
        """The inverse of `asdict`."""
        return cls(**(fields | {"config": config_from_dict(fields["config"])}))

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Random inputs and targets, int32 [B, T]."""
        shape = (self.batch_size, self.sequence_length + 1)
        x = np.random.default_rng(0).integers(0, self.config.vocab_size, shape, dtype=np.int32)
        return np.ascontiguousarray(x[:, :-1]), np.ascontiguousarray(x[:, 1:])


def our_step(
    step: dict[str, Any], observe: Callable[[kernels.Backend], kernels.Backend] = lambda kernels: kernels
) -> Callable[[], object]:
    """Our training step, ready to be called; on what `observe` makes of the kernels."""
    from llmpy.models.registry import new_model
    from llmpy.training.optimizer import AdamW, clip_scale

    work = Step.from_dict(step)
    kernels.start("cpu", work.threads, work.precision)
    shape = (work.config, "cpu", work.batch_size, work.sequence_length, work.recompute)
    model = new_model(*shape, precision=work.precision).initialize()
    model.kernels = observe(model.kernels)
    optimizer = AdamW.of(model)
    x, y = work.tokens()
    done = 0

    def run() -> float:
        nonlocal done
        done += 1
        loss = model.loss_and_gradients(x, y)
        optimizer.update(done, LR, clip_scale(optimizer.gradient_norm(), work.clip) if work.clip else 1.0)
        return float(loss)

    return run


def pytorch_step(step: dict[str, Any], compiled: bool) -> Callable[[], object]:
    """The same step in PyTorch: fused attention, fused AdamW, padded vocabulary, gradients dropped and not zeroed.

    In bfloat16 as its makers advise: autocast around forward and loss, parameters and optimizer in float32. A Llama's
    channels are rotated half a head apart, which it does faster and which is the same to values drawn at random.
    """
    import torch

    from llmpy.bench.torch_peer.model import autocast

    work = Step.from_dict(step)
    torch.set_num_threads(work.threads)
    torch.manual_seed(42)
    config = work.config
    model = peers.torch_model(config.with_rope_interleaved(False))
    optimizer = model.adamw(LR)
    forward = torch.compile(model) if compiled else model
    x, y = (torch.from_numpy(a).long() for a in work.tokens())

    def run() -> float:
        with autocast(work.precision):
            loss = forward(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if work.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), work.clip)
        optimizer.step()
        return loss.item()

    return run


def bench(step: Step, rounds: int, rivals: list[peers.Peer]) -> dict[str, Any]:
    """Measure our step, and each rival's beside it. benchmarks/README.md describes the fields of the result."""
    kernels.start(
        "cpu", step.threads, precision=step.precision
    )  # compiled here, where it shows, and read from disk by the worker
    turns = rounds * max(1, 2 * len(rivals))
    with timing.worker("llm.py") as us, bar("measuring", turns, "turns") as shown:
        us.prepare("llmpy.bench.train:our_step", step=asdict(step))
        results = [_beside(us, rival, step, rounds, shown) for rival in rivals]
        measured = [result for result in results if "error" not in result]
        if measured:
            best = min(measured, key=lambda result: result["peer_ms"])
        else:
            best = {"ours_ms": timing.milliseconds(timing.interleave([us], rounds, shown.advance)[0])}
        return {
            "benchmark": "train",
            "model": asdict(step.config),
            "batch_size": step.batch_size,
            "sequence_length": step.sequence_length,
            "recompute": step.recompute,
            "precision": step.precision,
            "rounds": rounds,
            "ours_ms": best["ours_ms"],
            "peer": best.get("name"),
            "peer_ms": best.get("peer_ms"),
            "ratio": best.get("ratio"),
            "tokens_per_s": round(step.batch_size * step.sequence_length / best["ours_ms"] * 1e3, 1),
            "peak_mb": us.peak_mb,
            "peer_peak_mb": best.get("peer_peak_mb"),
            "peers": results,
            "machine": machine.describe(step.threads),
        }


def _beside(us: timing.Worker, rival: peers.Peer, step: Step, rounds: int, shown: Bar) -> dict[str, Any]:
    """Our step and a rival's, in turn. A rival that cannot be compiled here (it takes a C++ compiler) is left out."""
    shown.description = f"measuring beside {rival.name}"
    with timing.worker(rival.name, rival.environment | peers.thread_settings(step.threads)) as them:
        try:
            them.prepare("llmpy.bench.train:pytorch_step", warm_up=3, step=asdict(step), compiled=rival.compiled)
        except UserError as error:
            if not rival.compiled:
                raise
            return {"name": rival.name, "error": str(error)}
        ours, theirs = timing.interleave([us, them], rounds, shown.advance)
        return timing.comparison(rival.name, ours, theirs) | {"peer_peak_mb": them.peak_mb}
