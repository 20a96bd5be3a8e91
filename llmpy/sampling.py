"""From logits to the next token: greedy, temperature, top-k, top-p, as llama2.c and llm.c draw it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmpy.errors import UserError
from llmpy.rng import Xorshift


@dataclass(frozen=True)
class Sampling:
    """How to choose among tokens.

    temperature: 0 takes the likeliest token; 1 draws from the model's own distribution; more flattens it.
    top_k: draw among the k likeliest (0: among all). top_p: draw among the fewest likeliest tokens whose
    probabilities exceed p together (Holtzman et al. 2019; 0 or 1: among all).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top-k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top-p must be between 0 and 1, not {self.top_p}")


def sample(logits: np.ndarray, sampling: Sampling, random: Xorshift) -> int:
    """logits float32 [V] -> a token. One number is drawn from `random`, none where the temperature is 0.

    Raises UserError where the logits are no numbers: the weights are damaged, or training has diverged.
    """
    largest = logits.max()
    if not np.isfinite(largest):
        raise UserError("the model's output is not a number: its weights are damaged, or its training has diverged")
    if sampling.temperature == 0:
        return int(logits.argmax())
    V, k, p = len(logits), sampling.top_k, sampling.top_p
    tokens = np.sort(np.argpartition(logits, -k)[-k:]) if 0 < k < V else None  # None: all
    with np.errstate(over="ignore"):  # to minus infinity: a weight of 0
        scaled = (logits if tokens is None else logits[tokens]) - largest
        weights = np.exp(scaled / np.float32(max(sampling.temperature, 1e-6)))  # the likeliest has 1
    if 0 < p < 1:
        # Below (1 - p) / (n - 1) only the likeliest can be among the first whose sum exceeds p: few are left to sort.
        total = weights.sum(dtype=np.float64)
        kept = np.flatnonzero(weights >= min(1.0, (1 - p) / max(len(weights) - 1, 1) * total))
        kept = kept[np.argsort(-weights[kept], kind="stable")]
        enough = np.searchsorted(np.cumsum(weights[kept], dtype=np.float64), p * total, side="right") + 1
        kept = kept[:enough]
        weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
    cumulative = np.cumsum(weights, dtype=np.float64)
    choice = int(np.searchsorted(cumulative, random.uniform() * cumulative[-1], side="right"))
    return choice if tokens is None else int(tokens[choice])
