"""The peer of a training step: GPT-2 as nanoGPT writes it, in PyTorch, compiled, in bfloat16 by autocast, AdamW fused.

In a process where none of our kernels run. On the CPU it is for trying the code out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (its name everywhere)
from torch.nn.attention import sdpa_kernel

from benchmarks.gpu.torch_ops import BACKENDS
from llmpy.bench.torch_peer.gpt2 import TorchGPT2
from llmpy.models.registry import config_from_dict, new_model

LR, CLIP = 1e-4, 1.0


def batch(vocab_size: int, B: int, T: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs and targets that ours get."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, vocab_size, (B, T + 1), dtype=np.int32)).long()
    return tokens[:, :-1].contiguous().to(device), tokens[:, 1:].contiguous().to(device)


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def trained(
    config: dict[str, Any], B: int, T: int, steps: int, attention: str, precision: str = "bfloat16",
    device: str = "cuda", compiled: str = "whole",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Runs in a child process. Yields a row with tokens/s, or with `missing` if memory is short. `compiled`: the whole
    model, its blocks and head separately, or (empty) nothing."""
    row = {"batch_size": B, "sequence_length": T, "attention": attention, "compiled": compiled}
    if device == "cuda" and not torch.cuda.is_available():
        yield row | {"missing": f"PyTorch {torch.__version__} finds no GPU: install a build of it for CUDA"}
        return
    shape = config_from_dict(config)
    try:
        with torch.device(device):
            model = TorchGPT2(shape, padded=True)
        optimizer, (x, y) = model.adamw(LR), batch(shape.vocab_size, B, T, device)
        forward = _compiled(model, compiled)
        moments = []
        with sdpa_kernel(BACKENDS[attention]):
            for _ in range(steps + 1):
                with autocast(precision, device):
                    loss = forward(x, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                if device == "cuda":
                    moments.append(torch.cuda.Event(enable_timing=True))
                    moments[-1].record()
                else:
                    moments.append(time.perf_counter())
    except torch.OutOfMemoryError:
        yield row | {"missing": "out of memory"}
        return
    last = loss.item()
    if device == "cuda":
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) / 1000 for a, b in pairwise(moments)]
    else:
        times = [b - a for a, b in pairwise(moments)]
    seconds = statistics.median(times[2:] or times)
    memory = torch.cuda.max_memory_reserved() if device == "cuda" else 0
    yield row | {"tokens_per_s": B * T / seconds, "seconds": seconds, "memory_gb": memory / 1e9, "loss": last}


def _compiled(model: TorchGPT2, how: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if how != "blocks":
        return torch.compile(model) if how == "whole" else model
    for block in model.h:  # all alike: they are compiled once
        block.compile()

    @torch.compile
    def loss(x: torch.Tensor, w: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(x, w).flatten(0, 1), targets.flatten())

    return lambda tokens, targets: loss(model.hidden(tokens), model.head_weight(), targets)


def losses(
    config: dict[str, Any], B: int, T: int, steps: int, precision: str, device: str = "cuda"
) -> Iterator[dict[str, Any]]:
    """Runs in a child process. Yields the loss before each step, from our weights of seed 42; not compiled, and with a
    head over all tokens at once, so that the loss is the same."""
    shape = config_from_dict(config)
    model = TorchGPT2(shape).load(new_model(shape, "reference").initialize().parameters).to(device)
    optimizer, (x, y) = model.adamw(LR), batch(shape.vocab_size, B, T, device)
    for _ in range(steps):
        with autocast(precision, device):
            loss = model(x, y)
        yield {"loss": loss.item()}
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def compiled(todo: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Runs in a child process. Runs a step of each task to fill PyTorch's compile cache, in a part of the memory."""
    torch.cuda.set_per_process_memory_fraction(0.7)
    for arguments in todo:
        yield from trained(**arguments)
        torch.compiler.reset()
        torch.cuda.empty_cache()
