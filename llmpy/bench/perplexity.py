"""Perplexity of a text under a model in each precision, by the decoder itself, so that its rounding counts.

The measure is nats a token (the mean cross-entropy), of which the perplexity is the exponential.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmpy.inference.engine import Engine
from llmpy.models.registry import new_decoder
from llmpy.utils.progress_bar import Bar

NOTHING = -1  # a target that counts for nothing: the places behind a story that ends before its window


@dataclass(frozen=True)
class Windows:
    """Input tokens and target tokens, both int32 [n, T]."""

    tokens: np.ndarray
    targets: np.ndarray

    @property
    def count(self) -> int:
        """Number of target tokens."""
        return int((self.targets != NOTHING).sum())


def stream_windows(stories: Sequence[np.ndarray], separator: int, T: int) -> Windows:
    """The stories one after the other, the separator before each, cut every T tokens wherever that is: how llama2.c
    validates. What is left behind the last whole window is left out."""
    parts = [part for story in stories for part in ([separator], story)]
    stream = np.concatenate([np.zeros(0), *parts]).astype(np.int32)
    n = max(0, (len(stream) - 1) // T)
    return Windows(stream[: n * T].reshape(n, T), stream[1 : n * T + 1].reshape(n, T))


def story_windows(stories: Sequence[np.ndarray], separator: int, T: int) -> Windows:
    """Every story alone, from the separator to the one behind it, in windows of T tokens that share nothing."""
    tokens, targets = [], []
    for story in stories:
        whole = np.concatenate([[separator], story, [separator]])
        for start in range(0, len(whole) - 1, T):
            part = whole[start : start + T + 1]
            tokens.append(np.pad(part[:-1], (0, T + 1 - len(part)), constant_values=separator))
            targets.append(np.pad(part[1:], (0, T + 1 - len(part)), constant_values=NOTHING))
    return Windows(np.array(tokens, np.int32).reshape(-1, T), np.array(targets, np.int32).reshape(-1, T))


CUTS = {"stream": stream_windows, "stories": story_windows}


def nats_a_token(engine: Engine, windows: Windows, side_by_side: int, bar: Bar) -> float:
    """The mean over all that is foretold; `side_by_side` windows are read at once, token by token."""
    total = 0.0
    decoder = new_decoder(engine.weights, engine.backend, side_by_side, precision=engine.precision)
    for first in range(0, len(windows.tokens), side_by_side):
        group = slice(first, first + side_by_side)
        tokens, targets = windows.tokens[group], windows.targets[group]
        rows = np.arange(len(tokens), dtype=np.int32)
        for position in range(used(targets)):
            logits = decoder.decode(np.ascontiguousarray(tokens[:, position]), np.full_like(rows, position), rows)
            target, counts = targets[:, position], targets[:, position] != NOTHING
            top = logits.max(1)
            sums = np.exp((logits - top[:, None]).astype(np.float64)).sum(1)
            losses = np.log(sums) + top - logits[rows, target]
            total += losses[counts].sum()
            bar.advance(int(counts.sum()))
    return total / max(1, windows.count)


def used(targets: np.ndarray) -> int:
    """Counts the positions of these windows that have a target."""
    return int(np.flatnonzero((targets != NOTHING).any(0)).max(initial=-1)) + 1


def compared(nats: dict[str, float]) -> Iterable[tuple[str, float, float, float]]:
    """(precision, nats a token, perplexity, change of the nats to the first precision's) of each."""
    first = next(iter(nats.values()))
    return ((name, value, math.exp(value), value / first - 1) for name, value in nats.items())
