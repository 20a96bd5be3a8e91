"""From logits to the next token: greedy, temperature, top-k, top-p, as llama2.c and llm.c draw it; min-p; a penalty."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from llmpy.errors import UserError
from llmpy.rng import Xorshift


@dataclass(frozen=True)
class Sampling:
    """How to choose among tokens.

    temperature: 0 takes the likeliest token; 1 draws from the model's own distribution; more flattens it.
    top_k: draw among the k likeliest (0: among all). top_p: draw among the fewest likeliest tokens whose
    probabilities exceed p together (Holtzman et al. 2019; 0 or 1: among all). min_p: among what is left, draw only
    what has at least this share of the likeliest one's probability (Nguyen et al. 2024; 0: all).

    repetition_penalty divides the logits above 0 of the last `repetition_window` tokens, and multiplies those below,
    once for a token however often it was there (Keskar et al. 2019, CTRL; over a window, the prompt's tokens among
    them, as llama.cpp has it; 1: none). It comes first, and greedy choice heeds it too.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top-k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top-p must be between 0 and 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min-p must be between 0 and 1, not {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(f"the repetition penalty must be more than 0 (1: none), not {self.repetition_penalty}")
        if self.repetition_window < 1:
            raise UserError(f"the repetition window must be 1 token or more, not {self.repetition_window}")


def sample(logits: np.ndarray, sampling: Sampling, random: Xorshift, recent: Collection[int] = ()) -> int:
    """logits float32 [V] -> a token. One number is drawn from `random`, none where the temperature is 0.

    `recent` are the tokens that a repetition penalty falls on, those of its window. Raises UserError where the logits
    are no numbers: the weights are damaged, or training has diverged.
    """
    if sampling.repetition_penalty != 1 and recent:
        logits = _penalized(logits, recent, sampling.repetition_penalty)
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
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= sampling.min_p)
        weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
    cumulative = np.cumsum(weights, dtype=np.float64)
    choice = int(np.searchsorted(cumulative, random.uniform() * cumulative[-1], side="right"))
    return choice if tokens is None else int(tokens[choice])


def log_probability(logits: np.ndarray, token: int) -> float:
    """logits float32 [V] -> the natural logarithm of the probability that the model itself gives the token."""
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def _penalized(logits: np.ndarray, recent: Collection[int], penalty: float) -> np.ndarray:
    seen = np.array([token for token in set(recent) if token < len(logits)], np.int64)
    logits = logits.copy()
    with np.errstate(over="ignore"):
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits
