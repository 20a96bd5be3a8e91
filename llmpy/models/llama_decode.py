"""Llama at inference: keys and values of past tokens are kept, so that a new one costs one pass over the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from llmpy import kernels
from llmpy.config import LlamaConfig
from llmpy.memory import MemoryPlan
from llmpy.models.llama import Llama
from llmpy.models.rotary import rotations
from llmpy.models.transformer import Weights
from llmpy.parameters import Parameters
from llmpy.precision import dtype
from llmpy.weights import BFloat16Weights

MOST_POSITIONS = 4096  # newer models have positions for far more text than the cache of a small machine can hold


class LlamaDecoder:
    """S sequences of at most `config.context` tokens, decoded side by side. Buffers are taken once.

    `.config` is the one given, its context cut to MOST_POSITIONS.
    """

    def __init__(
        self,
        config: LlamaConfig,
        parameters: Parameters,
        backend: str = "cpu",
        sequences: int = 1,
        weights: Weights | None = None,
    ) -> None:
        """`weights` are a model's: with a bfloat16 copy of the parameters, all is computed and kept in bfloat16."""
        self.config = config = replace(config, context=min(config.context, MOST_POSITIONS))
        self.parameters, self.kernels = parameters, kernels.load(backend)
        self.weights, self.sequences = parameters if weights is None else weights, sequences
        numbers = dtype("bfloat16" if isinstance(weights, BFloat16Weights) else "float32")
        L, S, T, C, H = config.layers, sequences, config.context, config.channels, config.hidden
        NH, NKV, hs = config.heads, config.kv_heads, config.head_size
        self.memory = plan = MemoryPlan()
        for name in ("keys", "values"):
            plan.add("key-value cache", name, L, S, T, NKV, hs, dtype=numbers)
        rows = S * T
        for name, width in (("x", C), ("ln", C), ("qkv", (NH + 2 * NKV) * hs), ("att", NH * hs), ("gateup", 2 * H)):
            plan.add("activations", name, rows, width, dtype=numbers)
        plan.add("activations", "hidden", rows, H, dtype=numbers)
        plan.add("activations", "rstd", rows)
        plan.add("activations", "lse", S * NH * T)
        plan.add("activations", "cos", T, hs // 2)
        plan.add("activations", "sin", T, hs // 2)
        plan.add("logits", "logits", S, config.vocab_size)
        self.arrays = plan.take()
        self.arrays["cos"][:], self.arrays["sin"][:] = rotations(config, T)

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """tokens int32 [S, T], from position 0 on -> logits [S, V] after the last of them; the cache is begun anew.

        Tokens [1, T] are the beginning of every sequence: read once, for logits [1, V].
        """
        S, T = tokens.shape
        lse = self.arrays["lse"][: S * self.config.heads * T].reshape(S, self.config.heads, T)

        def attend(layer: int, y: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
            self.arrays["keys"][layer, :, :T], self.arrays["values"][layer, :, :T] = k, v  # one row goes to all
            self.kernels.attention_forward(y, lse, q, k, v)

        return self._logits(self._blocks(tokens, np.zeros(S, np.int32), attend)[:, -1])

    def decode(self, tokens: np.ndarray, positions: int | np.ndarray) -> np.ndarray:
        """The token int32 [S] at each sequence's position (int32 [S], or one for all) -> logits [S, V] for the next."""
        S = len(tokens)
        rows, at = np.arange(S), np.empty(S, np.int32)
        at[:] = positions

        def attend(layer: int, y: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
            keys, values = self.arrays["keys"][layer, :S], self.arrays["values"][layer, :S]
            keys[rows, at], values[rows, at] = k[:, 0], v[:, 0]
            self.kernels.attention_decode(y[:, 0], np.ascontiguousarray(q[:, 0]), keys, values, at)

        return self._logits(self._blocks(tokens.reshape(S, 1), at, attend)[:, 0])

    def _blocks(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        attend: Callable[[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None],
    ) -> np.ndarray:
        """tokens [S, T], the first of each sequence at positions [S] -> the last norm's output [S, T, C].

        `attend(layer, y, q, k, v)` is the attention, of y and q [S, T, NH, hs], k and v [S, T, NKV, hs].
        """
        p, K, c, rows = self.parameters, self.kernels, self.config, tokens.size
        x, ln, qkv, att, gateup, hidden, rstd = (
            self.arrays[name][:rows] for name in ("x", "ln", "qkv", "att", "gateup", "hidden", "rstd")
        )
        heads = qkv.reshape(*tokens.shape, -1, c.head_size)
        q, k, v = np.split(heads, [c.heads, c.heads + c.kv_heads], axis=2)
        K.embedding_forward(x.reshape(*tokens.shape, -1), tokens, p.wte)
        for layer, (vectors, w) in enumerate(zip(p.layers, self.weights.layers, strict=True)):
            K.rmsnorm_forward(ln, rstd, x, vectors.ln1w, c.norm_eps)
            K.linear_forward(qkv, ln, w.qkvw, getattr(vectors, "qkvb", None))
            turned = heads[:, :, : c.heads + c.kv_heads]
            K.rope_forward(turned, self.arrays["cos"], self.arrays["sin"], c.rope_interleaved, positions)
            attend(layer, att.reshape(q.shape), q, k, v)
            K.linear_forward(x, att, w.attprojw, residual=x)
            K.rmsnorm_forward(ln, rstd, x, vectors.ln2w, c.norm_eps)
            K.linear_forward(gateup, ln, w.gateupw)
            K.swiglu_forward(hidden, gateup)
            K.linear_forward(x, hidden, w.downw, residual=x)
        K.rmsnorm_forward(ln, rstd, x, p.lnfw, c.norm_eps)
        return ln.reshape(*tokens.shape, -1)

    def _logits(self, x: np.ndarray) -> np.ndarray:
        """x [S, C] -> logits [S, V]; valid until the next call."""
        logits = self.arrays["logits"][: len(x)]
        self.kernels.linear_forward(logits, np.ascontiguousarray(x), Llama.head(self.config, self.weights))
        return logits
