"""The decoder that all families share: the KV cache keeps past tokens, so a new token costs one pass over the weights.

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
from llmpy.errors import UserError
from llmpy.models.config import ModelConfig
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.precision import dtype
from llmpy.utils.memory import MemoryPlan

BLOCK = 512  # tokens of a prompt that are read at a time: they bound the memory that activations take
MOST_POSITIONS = 4096  # newer models have positions for far more text than the cache of a small machine can hold
Config = TypeVar("Config", bound=ModelConfig)
# attend(layer, y, q, k, v): the attention of y and q [T, NH, hs], k and v [T, NKV, hs]
Attend = Callable[[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def decoder_context(config: ModelConfig, context: int | None = None) -> int:
    """Returns the length of a KV cache slot: `context`, or the context of the model, up to MOST_POSITIONS.

    Raises UserError for more than the model has.
    """
    if context is None:
        return min(config.context, MOST_POSITIONS)
    if not 1 <= context <= config.context:
        raise UserError(f"a context of {context} tokens cannot be had: the model has positions for {config.context}")
    return context


def on_backend(weights: StoredWeights, backend: str) -> StoredWeights:
    """The weights where the kernels of a backend read them; themselves, if they are there."""
    return kernels.load(backend).upload_weights(weights)


class Decoder(ABC, Generic[Config]):
    """`sequences` slots of at most `config.context` tokens each. Memory is taken once, BLOCK rows of activations in it.

    `.config` is that of the weights, its context as `decoder_context` says. `precision` is that of the cache and of the
    activations of a prompt that is read, float32 or bfloat16; the matrices are read as they are stored. Raises
    UserError where there is not the memory.
    """

    can_shift = False  # only positions that are relative can be moved

    def __init__(
        self,
        weights: StoredWeights,
        backend: str = "cpu",
        sequences: int = 1,
        context: int | None = None,
        precision: str = "float32",
    ) -> None:
        config: Config = weights.config  # type: ignore[assignment]
        self.config: Config = replace(config, context=decoder_context(config, context))
        c = self.config
        self.kernels, self.sequences = kernels.load(backend), sequences
        self.weights = on_backend(weights, backend)
        self.numbers = dtype(precision)
        self.kv_heads = c.kv_heads
        self.memory = plan = MemoryPlan()
        for name in ("keys", "values"):
            shape = c.layers, sequences, self.kv_heads, c.context, c.head_size  # a head is read from end to end
            plan.add("key-value cache", name, *shape, dtype=self.numbers)
        block = min(BLOCK, c.context)
        self._plan_activations(plan, block)
        plan.add("activations", "lse", c.heads * block)
        plan.add("positions", "start", 1, dtype=np.int32)
        texts = "one text" if sequences == 1 else f"{sequences} texts side by side"
        advice = f"the cache holds {c.context} tokens of {texts}; shorten it (--context), or make fewer"
        self.arrays = self.kernels.take(plan, advice)
        # Of a step, and apart from them those of a prompt: on the host, where tokens are drawn.
        logits = MemoryPlan()
        logits.add("logits", "logits", sequences + 1, c.vocab_size)
        self.logits = logits.take(advice)["logits"]
        for name in ("keys", "values"):
            self.arrays[name] = self.arrays[name].swapaxes(2, 3)  # [L, slots, T, NKV, hs]
        self._begin()
        angles = self.arrays.get("cos"), self.arrays.get("sin")
        self._decode = self.kernels.Decode(c, self.weights, self.arrays["keys"], self.arrays["values"], *angles)

    # ---- the parts of a family -------------------------------------------------------------------------------------

    @abstractmethod
    def _plan_activations(self, plan: MemoryPlan, rows: int) -> None:
        """Add what `_blocks` needs for so many rows."""

    def _begin(self) -> None:
        """Fills in those of the arrays that never change."""

    @abstractmethod
    def _read_block(self, x: np.ndarray, start: int, attend: Attend) -> None:
        """x [T, C], embeddings of tokens of which the first is at position `start`, through all layers."""

    # ---- reading and continuing ------------------------------------------------------------------------------------

    def prefill(self, tokens: np.ndarray, slot: int = 0, start: int = 0) -> np.ndarray:
        """tokens int32 [T], appended behind the `start` tokens that the slot holds -> logits [V] after the last.

        They are valid until the next prefill. What the slot held from `start` on is forgotten. All but the last are
        read in blocks, for their keys and values; the last is decoded, as those that follow will be.
        """
        if not 0 < len(tokens) <= self.config.context - start:
            raise ValueError(f"{len(tokens)} tokens behind {start} are not in a context of {self.config.context}")
        last: int = start + len(tokens) - 1
        bounds = [start, *range((start // BLOCK + 1) * BLOCK, last, BLOCK), last]  # the same wherever reading begins
        for begin, end in pairwise(bounds):
            if begin < end:
                x = self.arrays["x"][: end - begin]
                positions = np.arange(begin, end, dtype=np.int32)
                self.kernels.embed_rows(x, self.weights, tokens[begin - start : end - start], positions)
                self.arrays["start"][:] = begin
                self._read_block(x, begin, self._reading(slot, begin))
        return self._step(self.sequences, tokens[-1:], np.array([last], np.int32), np.array([slot], np.int32))[0]

    def _reading(self, slot: int, start: int) -> Attend:
        """The attention of tokens that are read in one go, over those before them and over themselves."""

        def attend(layer: int, y: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
            end = start + len(q)
            keys, values = (self.arrays[name][layer, slot : slot + 1, :end] for name in ("keys", "values"))
            self.kernels.copy(keys[0, start:], k)
            self.kernels.copy(values[0, start:], v)
            lse = self.arrays["lse"][: q.shape[0] * q.shape[1]].reshape(1, q.shape[1], q.shape[0])
            self.kernels.attention_forward(y[None], lse, q[None], keys, values)

        return attend

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """The tokens int32 [S] at positions int32 [S] of the sequences in slots int32 [S], each another -> logits
        [S, V] for the next ones, valid until the next call."""
        return self._step(0, tokens, positions, slots)

    def _step(self, first: int, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """`decode`, its logits in rows of the array from `first` on."""
        logits = self.logits[first : first + len(tokens)]
        self._decode(logits, tokens, slots, positions)
        return logits

    # ---- what slots hold -------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """After the weights have changed: what slots hold is no longer what the model would say."""
        self._decode.renew()

    def copy(self, source: int, length: int, to: Sequence[int]) -> None:
        """The first `length` tokens of a slot are those of the slots `to` too."""
        for name in ("keys", "values"):
            for layer in self.arrays[name]:
                for slot in to:
                    self.kernels.copy(layer[slot, :length], layer[source, :length])

    def shift(self, slot: int, keep: int, drop: int) -> None:
        """Forgets the `drop` tokens behind the first `keep`; those after them are `drop` positions earlier from now on.

        For models that `can_shift`; `prefill` reads the text again for the others.
        """
        raise NotImplementedError(f"{type(self).__name__} has positions that cannot be moved")
