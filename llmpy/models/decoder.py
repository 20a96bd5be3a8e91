"""What every model at inference is: keys and values of past tokens are kept, so that a new one costs one pass over the
weights.

Several sequences lie side by side, each in a slot of the cache. A family fills in its blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from llmpy import kernels
from llmpy.config import GPT2Config, LlamaConfig
from llmpy.errors import UserError
from llmpy.memory import MemoryPlan
from llmpy.models.transformer import Weights
from llmpy.parameters import Parameters
from llmpy.precision import dtype
from llmpy.weights import BFloat16Weights

BLOCK = 512  # tokens of a prompt that are read at a time: they bound the memory that activations take
MOST_POSITIONS = 4096  # newer models have positions for far more text than the cache of a small machine can hold
Config = TypeVar("Config", GPT2Config, LlamaConfig)
# attend(layer, y, q, k, v): the attention of y and q [B, T, NH, hs], k and v [B, T, NKV, hs]
Attend = Callable[[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def decoder_context(config: GPT2Config | LlamaConfig, context: int | None = None) -> int:
    """How many tokens a decoder looks back at: `context`, or what the model has positions for, up to MOST_POSITIONS.

    Raises UserError for more than the model has.
    """
    if context is None:
        return min(config.context, MOST_POSITIONS)
    if not 1 <= context <= config.context:
        raise UserError(f"a context of {context} tokens cannot be had: the model has positions for {config.context}")
    return context


class Decoder(ABC, Generic[Config]):
    """`sequences` slots of at most `config.context` tokens each. Memory is taken once, BLOCK rows of activations in it.

    `.config` is the one given, its context as `decoder_context` says. `weights` are a model's: with a bfloat16 copy of
    the parameters, all is computed and kept in bfloat16. What is not finite in a slot stays there. Raises UserError
    where there is not the memory.
    """

    can_shift = False  # only positions that are relative can be moved

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        backend: str = "cpu",
        sequences: int = 1,
        weights: Weights | None = None,
        context: int | None = None,
    ) -> None:
        self.config: Config = replace(config, context=decoder_context(config, context))
        c = self.config
        self.parameters, self.kernels = parameters, kernels.load(backend)
        self.weights, self.sequences = parameters if weights is None else weights, sequences
        self.numbers = dtype("bfloat16" if isinstance(weights, BFloat16Weights) else "float32")
        self.kv_heads = c.kv_heads if isinstance(c, LlamaConfig) else c.heads
        self.memory = plan = MemoryPlan()
        for name in ("keys", "values"):
            shape = c.layers, sequences, c.context, self.kv_heads, c.head_size
            plan.add("key-value cache", name, *shape, dtype=self.numbers)
        block = min(BLOCK, c.context)
        self._plan_activations(plan, max(block, sequences))
        plan.add("activations", "lse", c.heads * block)
        plan.add("logits", "logits", sequences + 1, c.vocab_size)
        texts = "one text" if sequences == 1 else f"{sequences} texts side by side"
        self.arrays = plan.take(f"the cache holds {c.context} tokens of {texts}; shorten it (--context), or make fewer")
        self._begin()

    # ---- the parts of a family -------------------------------------------------------------------------------------

    @abstractmethod
    def _plan_activations(self, plan: MemoryPlan, rows: int) -> None:
        """Add what `_blocks` needs for so many rows."""

    def _begin(self) -> None:
        """Fills in those of the arrays that never change."""

    @abstractmethod
    def _blocks(self, tokens: np.ndarray, positions: np.ndarray, attend: Attend) -> np.ndarray:
        """tokens int32 [B, T], the first of each row at positions int32 [B] -> the last norm's output [B*T, C]."""

    @abstractmethod
    def _head(self) -> np.ndarray:
        """The weight of the head as products read it, [V, C]"""

    # ---- reading and continuing ------------------------------------------------------------------------------------

    def prefill(self, tokens: np.ndarray, slot: int = 0, start: int = 0) -> np.ndarray:
        """tokens int32 [T], appended behind the `start` tokens that the slot holds -> logits [V] after the last.

        They are valid until the next prefill. What the slot held from `start` on is forgotten.
        """
        if not 0 < len(tokens) <= self.config.context - start:
            raise ValueError(f"{len(tokens)} tokens behind {start} are not in a context of {self.config.context}")
        end: int = start + len(tokens)
        bounds = [start, *range((start // BLOCK + 1) * BLOCK, end, BLOCK), end]  # the same wherever reading begins
        for first, last in pairwise(bounds):
            block = tokens[None, first - start : last - start]
            x = self._blocks(block, np.array([first], np.int32), self._reading(slot, first))
        return self._logits(x[-1:], self.sequences)[0]

    def _reading(self, slot: int, start: int) -> Attend:
        """The attention of tokens that are read in one go, over those before them and over themselves."""

        def attend(layer: int, y: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
            end = start + q.shape[1]
            keys, values = (self.arrays[name][layer, slot : slot + 1, :end] for name in ("keys", "values"))
            keys[:, start:], values[:, start:] = k, v
            lse = self.arrays["lse"][: q.shape[1] * q.shape[2]].reshape(1, q.shape[2], q.shape[1])
            self.kernels.attention_forward(y, lse, q, keys, values)

        return attend

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """The tokens int32 [S] at positions int32 [S] of the sequences in slots int32 [S], each another -> logits
        [S, V] for the next ones, valid until the next call."""
        S = len(tokens)

        def attend(layer: int, y: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
            keys, values = self.arrays["keys"][layer], self.arrays["values"][layer]
            keys[slots, positions], values[slots, positions] = k[:, 0], v[:, 0]
            newest = np.ascontiguousarray(q[:, 0])
            self.kernels.attention_decode(y[:, 0], newest, keys, values, positions, slots)

        return self._logits(self._blocks(tokens.reshape(S, 1), positions, attend), 0)

    def _logits(self, x: np.ndarray, first: int) -> np.ndarray:
        """x [S, C] -> logits [S, V], rows of the array of logits from `first` on."""
        logits = self.arrays["logits"][first : first + len(x)]
        self.kernels.linear_forward(logits, x, self._head())
        return logits

    # ---- what slots hold -------------------------------------------------------------------------------------------

    def copy(self, source: int, length: int, to: Sequence[int]) -> None:
        """The first `length` tokens of a slot are those of the slots `to` too."""
        for name in ("keys", "values"):
            cache = self.arrays[name]
            for slot in to:
                cache[:, slot, :length] = cache[:, source, :length]

    def shift(self, slot: int, keep: int, drop: int) -> None:
        """Forgets the `drop` tokens behind the first `keep`; those after them are `drop` positions earlier from now on.

        For models that `can_shift`; `prefill` reads the text again for the others.
        """
        raise NotImplementedError(f"{type(self).__name__} has positions that cannot be moved")
