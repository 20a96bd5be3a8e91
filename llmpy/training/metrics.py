"""Metrics of a training run: z-scores for outliers, tokens per second, and FLOPs per token (for GFLOP/s and MFU)."""

from __future__ import annotations

import math

from llmpy.models.config import LlamaConfig, ModelConfig
from llmpy.models.parameters import parameter_table, total_size

WINDOW = 128  # number of values in the window of a z-score


class OutlierDetector:
    """How far a value is from the last 128: its z-score, in standard deviations. NaN until there are as many."""

    def __init__(self) -> None:
        self.window: list[float] = []

    def update(self, value: float) -> float:
        """Takes a value in and returns its z-score, by the mean and variance of a window that includes it."""
        if len(self.window) < WINDOW:
            self.window.append(value)
            return math.nan
        self.window = [*self.window[1:], value]
        mean = math.fsum(self.window) / WINDOW
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self.window) / WINDOW)
        return (value - mean) / deviation if deviation else 0.0


class Throughput:
    """Tokens a second: an exponential mean, corrected for its start at zero. The first step, a warm-up, is left out."""

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
    """Floating-point operations to train on one token: 6 for each parameter, and attention's (PaLM, appendix B, halved:
    it is causal). An embedding that is not the head's too is looked up, not multiplied with."""
    parameters = total_size(parameter_table(config))
    if isinstance(config, LlamaConfig) and not config.tied:
        parameters -= config.vocab_size * config.channels
    return 6 * parameters + 6 * config.layers * config.heads * config.head_size * sequence_length
