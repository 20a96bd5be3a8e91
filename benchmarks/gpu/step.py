"""Whole training steps of ours: how fast, in how much memory, and whether that stays the same; and what they learn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.arrays import POOL, repeat
from llmpy import kernels
from llmpy.config import ModelConfig, config_from_dict
from llmpy.errors import UserError
from llmpy.kernels import cuda
from llmpy.kernels.cuda import device
from llmpy.kernels.cuda.array import DeviceArray, empty
from llmpy.models import Model, new_model
from llmpy.monitor import flops_per_token
from llmpy.optimizer import AdamW

LR, CLIP = 1e-4, 1.0


def batch(config: ModelConfig, B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and targets, int32 [B, T]: the same for all that are compared."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (B, T + 1), dtype=np.int32)
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def trained(config: dict[str, Any], B: int, T: int, recompute: int, steps: int, gemm: str) -> Iterator[dict[str, Any]]:
    """For a process of its own: a row with tokens a second of steps in bfloat16, each with a micro-step, clipping and
    AdamW; or `missing`, where there is not the memory."""
    kernels.start("cuda", precision="bfloat16")
    gemm = choose(gemm)
    shape, current = config_from_dict(config), device.current()
    free = current.memory()[0]
    row = {"batch_size": B, "sequence_length": T, "recompute": recompute, "gemm": gemm}
    try:
        model: Model = new_model(shape, "cuda", B, T, recompute, "bfloat16")
    except UserError as error:
        yield row | {"missing": str(error)}
        return
    draw(model)
    optimizer, (x, y) = AdamW.of(model), batch(shape, B, T)
    scale, norm = empty(1), empty(1)
    with cuda.tuning():
        float(model.loss_and_gradients(x, y))
    times, held, waiting = [], [], None
    last = current.mark()
    for step in range(1, steps + 1):
        loss = model.loss_and_gradients(x, y)
        cuda.clip_scale(scale, norm, model.gradients.flat, CLIP)
        optimizer.update(step, LR, scale)
        now = current.mark()
        if waiting is not None:
            waiting = float(waiting)  # of the step before: the device has gone on meanwhile
        waiting, (last, before) = loss, (now, last)
        times.append(now - before)
        held.append(free - current.memory()[0])
    seconds, tokens = statistics.median(times[2:] or times), B * T
    speed, peak = tokens / seconds, cuda.peak_flops("bfloat16")
    yield row | {
        "tokens_per_s": speed,
        "seconds": seconds,
        "mfu": speed * flops_per_token(shape, T) / peak if peak else None,
        "memory_gb": max(held) / 1e9,
        "constant": len(set(held)) == 1,
        "loss": float(loss),
    }


def choose(gemm: str) -> str:
    """What multiplies from now on; cublas becomes triton where it is not there."""
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
    """For a process of its own: the loss before each of some steps on the same batch, from the weights of seed 42."""
    kernels.start(backend, precision=precision)
    shape = config_from_dict(config)
    model = new_model(shape, backend, B, T, precision=precision).initialize()
    optimizer, (x, y) = AdamW.of(model), batch(shape, B, T)
    for step in range(1, steps + 1):
        yield {"loss": float(model.loss_and_gradients(x, y))}
        optimizer.update(step, LR)
