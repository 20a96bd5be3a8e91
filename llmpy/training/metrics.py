"""Metrics of a training run: z-scores for outliers, tokens per second, and FLOPs per token (for GFLOP/s and MFU)."""

from __future__ import annotations

import math

from llmpy.models.config import ModelConfig
from llmpy.models.parameters import total_size

WINDOW = 128  # number of values in the window of a z-score


class OutlierDetector:
    """Z-scores of a value in a window of the last 128 values; NaN until the window is full."""

    def __init__(self) -> None:
        self.window: list[float] = []

    def update(self, value: float) -> float:
        """Adds a value to the window and returns the z-score of the value; the window includes the value."""
        if len(self.window) < WINDOW:
            self.window.append(value)
            return math.nan
        self.window = [*self.window[1:], value]
        mean = math.fsum(self.window) / WINDOW
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self.window) / WINDOW)
        return (value - mean) / deviation if deviation else 0.0


class Throughput:
    """Tokens per second: an exponential moving average with bias correction, without the first step (warm-up)."""

    DECAY = 0.95

    def __init__(self) -> None:
        self._mean, self._count = 0.0, -1

    def update(self, tokens: int, seconds: float) -> float:
        now = tokens / max(seconds, 1e-9)
        self._count += 1
        if self._count == 0:
            return now
        self._mean = self.DECAY * self._mean + (1 - self.DECAY) * now
        return self._mean / (1 - self.DECAY**self._count)


def flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Returns the FLOPs of one token's training: 6 per parameter, plus causal attention (PaLM, appendix B, halved).
    An embedding that is not tied to the head is a lookup and costs none."""
    parameters = total_size(config.parameter_table())
    if not config.tied:
        parameters -= config.vocab_size * config.channels
    return 6 * parameters + 6 * config.layers * config.heads * config.head_size * sequence_length
