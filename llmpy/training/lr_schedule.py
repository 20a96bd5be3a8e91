"""Learning-rate schedules, and the default learning rate of a model."""

from __future__ import annotations

import math

from llmpy.errors import UserError

# A narrower model trains with a higher learning rate: 6e-4 at C = 768 (llm.c's GPT-2 124M), 2.5e-3 at C = 128.
LR, LR_CHANNELS, LR_POWER = 6e-4, 768, 0.8
FLAT_PART = 0.8  # fraction of the steps after which the wsd schedule (warmup, stable, decay) starts its decay


def default_learning_rate(channels: int) -> float:
    """Returns the default highest learning rate for a model of C = `channels`, rounded to two digits."""
    return float(f"{LR * (LR_CHANNELS / channels) ** LR_POWER:.2g}")


def learning_rate(
    step: int, steps: int, highest: float, schedule: str = "cosine", warmup: int = 0, final_fraction: float = 0.0
) -> float:
    """Returns the learning rate of `step`, which counts from 0 to steps - 1.

    The rate rises over `warmup` steps (except in the constant schedule). Then it falls to highest * final_fraction:
    along half a cosine (cosine), along a line (linear), or, after a flat part of 0.8 of the steps, as 1 - sqrt (wsd,
    Hägele et al. 2024).
    """
    if schedule == "constant":
        return highest
    if step < warmup:
        return highest * (step + 1) / warmup
    lowest = highest * final_fraction
    if schedule == "cosine":
        return lowest + 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, steps))) * (highest - lowest)
    if schedule == "linear":
        return highest - _progress(step, warmup, steps) * (highest - lowest)
    if schedule == "wsd":
        decay_start = int(FLAT_PART * steps)
        if step < decay_start:
            return highest
        return lowest + (1 - math.sqrt(_progress(step, decay_start, steps))) * (highest - lowest)
    raise UserError(f"there is no schedule {schedule!r}: use cosine, linear, constant or wsd")


def _progress(step: int, start: int, stop: int) -> float:
    """Returns the progress of `step` between `start` and `stop`, 0 to 1."""
    return min((step - start) / max(stop - start, 1), 1.0)
