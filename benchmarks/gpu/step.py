"""Whole training steps of ours: how fast, in how much memory, and whether that stays the same; and what they learn."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.gpu.arrays import POOL, repeat
from llmpy import kernels
from llmpy.errors import UserError
from llmpy.kernels import cuda
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray, empty
from llmpy.models.config import ModelConfig
from llmpy.models.registry import config_from_dict, new_model
from llmpy.models.transformer import Model
from llmpy.training.metrics import flops_per_token
from llmpy.training.optimizer import AdamW

LR, CLIP = 1e-4, 1.0


def batch(config: ModelConfig, B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and targets, int32 [B, T]: the same for all that are compared."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (B, T + 1), dtype=np.int32)
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def trained(
    config: dict[str, Any], batches: list[int], T: int, recompute: int, steps: int, gemm: str
) -> Iterator[dict[str, Any]]:
    """Runs in a child process. Yields a row with tokens/s of bfloat16 steps for each number of sequences B. A step is a
    micro-step, clipping and AdamW. Stops at the first B that does not fit into memory, with a `missing` row."""
    kernels.start("cuda", precision="bfloat16")
    gemm, free = choose(gemm), device.current().memory()[0]
    for B in batches:
        row = {"batch_size": B, "sequence_length": T, "recompute": recompute, "gemm": gemm}
        try:
            model: Model = new_model(config_from_dict(config), "cuda", B, T, recompute, "bfloat16")
        except UserError as error:
            yield row | {"missing": str(error)}
            return
        yield row | _timed(model, B, T, steps, free)
        del model
        gc.collect()  # which its graphs refer to, and it to them


def _timed(model: Model, B: int, T: int, steps: int, free: int) -> dict[str, Any]:
    """Measures the steps of a model: seconds, tokens/s, and how many of the `free` bytes are allocated."""
    shape, current = model.config, device.current()
    draw(model)
    optimizer, (x, y) = AdamW.of(model), batch(shape, B, T)
    scale, norm = empty(1), empty(1)
    with cuda.tuning():
        float(model.loss_and_gradients(x, y))
    marks, held, losses = [current.mark()], [], []
    for step in range(1, steps + 1):
        losses.append(model.loss_and_gradients(x, y))
        cuda.clip_scale(scale, norm, model.gradients.flat, CLIP)
        optimizer.update(step, LR, scale)
        marks.append(current.mark())
        losses[-2:-1] = map(float, losses[-2:-1])  # of the step before: the device has gone on meanwhile
        held.append(free - current.memory()[0])
    times = [now - before for before, now in pairwise(marks)]
    seconds = statistics.median(times[2:] or times)
    speed, peak = B * T / seconds, cuda.peak_flops("bfloat16")
    return {
        "tokens_per_s": speed,
        "seconds": seconds,
        "mfu": speed * flops_per_token(shape, T) / peak if peak else None,
        "memory_gb": max(held) / 1e9,
        "constant": len(set(held)) == 1,
        "loss": float(losses[-1]),
    }


def choose(gemm: str) -> str:
    """Chooses the GEMM from now on; triton replaces cublas if cublas is missing."""
    try:
        cuda.set_gemm(gemm)
    except UserError:
        gemm = "triton"
        cuda.set_gemm(gemm)
    return gemm


def draw(model: Model) -> None:
    """Initial values for what is timed: of the right size, and the same numbers over and over, which takes no time."""
    for spec, view in model.parameters.items():
        if spec.init == "normal":
            pool = np.random.default_rng(0).standard_normal(min(POOL, spec.size), np.float32) * np.float32(spec.std)
            repeat(view, DeviceArray.of(pool))
        else:
            view.fill(1.0 if spec.init == "ones" else 0.0)
    model.pack_weights()


def losses(
    config: dict[str, Any], B: int, T: int, steps: int, precision: str, backend: str
) -> Iterator[dict[str, Any]]:
    """Runs in a child process. Yields the loss before each step on the same batch, from the weights of seed 42."""
    kernels.start(backend, precision=precision)
    shape = config_from_dict(config)
    model = new_model(shape, backend, B, T, precision=precision).initialize()
    optimizer, (x, y) = AdamW.of(model), batch(shape, B, T)
    for step in range(1, steps + 1):
        yield {"loss": float(model.loss_and_gradients(x, y))}
        optimizer.update(step, LR)
