"""Sampling of the next token from logits: temperature, top-k, top-p (as in llama2.c), min-p, repetition penalty."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from llmpy.errors import UserError
from llmpy.utils.rng import Xorshift

RARE = 2.0**-10  # beside the likeliest: tokens below are mostly too many to sort, and not needed
RUN = 256  # weights that are added up together before their sum goes into a running sum


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    temperature: 0 takes the likeliest token; 1 samples the model's own distribution; a higher value flattens it.
    top_k: samples among the k likeliest tokens (0: all). top_p: samples among the smallest set of likeliest tokens
    whose probabilities sum to more than p (Holtzman et al. 2019; 0 or 1: all). min_p: of those, keeps only tokens with
    at least this share of the likeliest token's probability (Nguyen et al. 2024; 0: all).

    repetition_penalty divides positive logits of the last `repetition_window` tokens and multiplies negative ones, once
    for each distinct token (Keskar et al. 2019, CTRL). As in llama.cpp, the window includes the prompt; 1 means none.
    The penalty is applied first, also before a greedy choice.
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


class RecentTokens(Collection[int]):
    """The different tokens among the last `window` that were added: what a repetition penalty falls on."""

    def __init__(self, window: int, tokens: Iterable[int] = ()) -> None:
        self._window, self._order, self._counts = window, deque[int](), dict[int, int]()
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        self._order.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if len(self._order) > self._window:
            oldest = self._order.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[int]:
        return iter(self._counts)

    def __contains__(self, token: object) -> bool:
        return token in self._counts


def sample(logits: np.ndarray, sampling: Sampling, random: Xorshift, recent: Collection[int] = ()) -> int:
    """logits float32 [V] -> a token. One number is drawn from `random`, none where the temperature is 0.

    `recent` are the tokens that a repetition penalty falls on, those of its window. Raises UserError where the logits
    are no numbers: the weights are damaged, or training has diverged.
    """
    if sampling.repetition_penalty != 1 and len(recent):
        logits = _penalized(logits, recent, sampling.repetition_penalty)
    likeliest = int(logits.argmax())  # of a NaN, if there is one
    largest = logits[likeliest]
    if not math.isfinite(largest):
        raise UserError("the model's output is not a number: its weights are damaged, or its training has diverged")
    if sampling.temperature == 0:
        return likeliest
    V, k, p = len(logits), sampling.top_k, sampling.top_p
    tokens = np.sort(np.argpartition(logits, -k)[-k:]) if 0 < k < V else None  # None: all
    with np.errstate(over="ignore"):  # to minus infinity: a weight of 0
        scaled = (logits if tokens is None else logits[tokens]) - largest
        weights = np.exp(scaled / np.float32(max(sampling.temperature, 1e-6)))  # the likeliest has 1
    if 0 < p < 1:
        choice = _draw_likely(weights, p, sampling.min_p, random.uniform())
    else:
        if sampling.min_p > 0:
            weights[weights < sampling.min_p] = 0
        choice = _first_beyond(weights, random.uniform() * float(weights.sum(dtype=np.float64)))
    return choice if tokens is None else int(tokens[choice])


def _draw_likely(weights: np.ndarray, p: float, min_p: float, share: float) -> int:
    """Samples among the likeliest tokens whose probabilities together exceed p (top-p).

    The result is the token at which the running sum, from the likeliest token on, exceeds `share` of the total. Ties:
    of equal weights, the token with the smaller id comes first. Sorting values is ten times faster than sorting
    indices, so the index is looked up once the value is known.
    """
    target = p * float(weights.sum(dtype=np.float64))
    likely = weights[weights >= RARE]
    if float(likely.sum(dtype=np.float64)) <= target:
        likely = weights
    likely = np.sort(likely)[::-1]
    likely = likely[: _first_beyond(likely, target) + 1]
    if min_p > 0:
        likely = likely[likely >= min_p]
    chosen = _first_beyond(likely, share * float(likely.sum(dtype=np.float64)))
    equals_before = chosen - int(np.count_nonzero(likely > likely[chosen]))
    return int(np.flatnonzero(weights == likely[chosen])[equals_before])


def _first_beyond(weights: np.ndarray, target: float) -> int:
    """The first i for which weights[: i + 1] sum up to more than `target`; the last that is not 0 where none does.

    A running sum over a vocabulary is slow: it is made over sums of RUN weights, and inside one run.
    """
    start, before = 0, 0.0
    if whole := len(weights) // RUN:
        sums = np.cumsum(weights[: whole * RUN].reshape(-1, RUN).sum(axis=1, dtype=np.float64))
        run = int(np.searchsorted(sums, target, side="right"))
        if run == whole and (whole * RUN == len(weights) or not weights[whole * RUN :].any()):
            run = int(np.searchsorted(sums, sums[-1]))  # what is beyond is nothing
        start, before = run * RUN, float(sums[run - 1]) if run else 0.0
    inside = np.cumsum(weights[start : start + RUN], dtype=np.float64) + before
    place = int(np.searchsorted(inside, target, side="right"))
    if place == len(inside):  # sums of runs and of single weights are rounded differently
        place = int(np.searchsorted(inside, inside[-1]))
    return start + place


def log_probability(logits: np.ndarray, token: int) -> float:
    """logits float32 [V] -> the natural logarithm of the probability that the model itself gives the token."""
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def _penalized(logits: np.ndarray, recent: Collection[int], penalty: float) -> np.ndarray:
    seen = np.fromiter(recent, np.int64, len(recent))
    seen = seen[seen < len(logits)]
    logits = logits.copy()
    with np.errstate(over="ignore"):
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits
