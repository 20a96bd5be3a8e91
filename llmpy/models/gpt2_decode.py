"""GPT-2 at inference: keys and values of past tokens are kept, so that a new one costs one pass over the weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmpy import kernels
from llmpy.config import GPT2Config
from llmpy.memory import MemoryPlan
from llmpy.models.gpt2 import GPT2
from llmpy.parameters import Parameters
from llmpy.precision import dtype
from llmpy.weights import BFloat16Weights


class GPT2Decoder:
    """S sequences of at most `context` tokens, decoded side by side. Buffers are taken once."""

    def __init__(
        self,
        config: GPT2Config,
        parameters: Parameters,
        backend: str = "cpu",
        sequences: int = 1,
        weights: Parameters | BFloat16Weights | None = None,
    ) -> None:
        """`weights` are a model's: with a bfloat16 copy of the parameters, all is computed and kept in bfloat16."""
        self.config, self.parameters, self.kernels = config, parameters, kernels.load(backend)
        self.weights, self.sequences = parameters if weights is None else weights, sequences
        numbers = dtype("bfloat16" if isinstance(weights, BFloat16Weights) else "float32")
        L, S, T, C, NH = config.layers, sequences, config.context, config.channels, config.heads
        self.memory = plan = MemoryPlan()
        for name in ("keys", "values"):
            plan.add("key-value cache", name, L, S, T, NH, C // NH, dtype=numbers)
        rows = S * T
        for name, width in (("x", C), ("ln", C), ("qkv", 3 * C), ("att", C), ("fch", 4 * C), ("fch_gelu", 4 * C)):
            plan.add("activations", name, rows, width, dtype=numbers)
        plan.add("activations", "mean", rows)
        plan.add("activations", "rstd", rows)
        plan.add("activations", "lse", S * NH * T)
        plan.add("logits", "logits", S, config.vocab_size)
        self.arrays = plan.take()

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """tokens int32 [S, T], from position 0 on -> logits [S, V] after the last of them; the cache is begun anew.

        Tokens [1, T] are the beginning of every sequence: read once, for logits [1, V].
        """
        S, T = tokens.shape
        heads = (S, T, self.config.heads, self.config.head_size)
        lse = self.arrays["lse"][: S * self.config.heads * T].reshape(S, self.config.heads, T)

        def attend(layer: int, qkv: np.ndarray, y: np.ndarray) -> None:
            q, k, v = (part.reshape(heads) for part in np.split(qkv.reshape(S, T, -1), 3, axis=-1))
            self.arrays["keys"][layer, :, :T], self.arrays["values"][layer, :, :T] = k, v  # one row goes to all
            self.kernels.attention_forward(y.reshape(heads), lse, q, k, v)

        x = self.arrays["x"][: S * T]
        self.kernels.embedding_forward(x.reshape(S, T, -1), tokens, self.parameters.wte, self.parameters.wpe)
        return self._logits(self._blocks(x, attend).reshape(S, T, -1)[:, -1])

    def decode(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """The token int32 [S] at `position` of each sequence -> logits [S, V] for the next one."""
        S = len(tokens)
        heads = (S, self.config.heads, self.config.head_size)
        positions = np.full(S, position, np.int32)

        def attend(layer: int, qkv: np.ndarray, y: np.ndarray) -> None:
            q, k, v = (part.reshape(heads) for part in np.split(qkv, 3, axis=-1))
            keys, values = self.arrays["keys"][layer, :S], self.arrays["values"][layer, :S]
            keys[:, position], values[:, position] = k, v
            self.kernels.attention_decode(y.reshape(heads), np.ascontiguousarray(q), keys, values, positions)

        x = self.arrays["x"][:S]
        self.kernels.embedding_forward(
            x.reshape(S, 1, -1), tokens.reshape(S, 1), self.parameters.wte, self.parameters.wpe, position
        )
        return self._logits(self._blocks(x, attend))

    def _blocks(self, x: np.ndarray, attend: Callable[[int, np.ndarray, np.ndarray], None]) -> np.ndarray:
        """Every block over the rows x [N, C]; `attend(layer, qkv, y)` is the attention -> the last norm's output."""
        p, K, rows = self.parameters, self.kernels, len(x)
        ln, qkv, att, fch, fch_gelu, mean, rstd = (
            self.arrays[name][:rows] for name in ("ln", "qkv", "att", "fch", "fch_gelu", "mean", "rstd")
        )
        for layer, (v, w) in enumerate(zip(p.layers, self.weights.layers, strict=True)):  # vectors, matrices
            K.layernorm_forward(ln, mean, rstd, x, v.ln1w, v.ln1b)
            K.linear_forward(qkv, ln, w.qkvw, v.qkvb)
            attend(layer, qkv, att)
            K.linear_forward(x, att, w.attprojw, v.attprojb, residual=x)
            K.layernorm_forward(ln, mean, rstd, x, v.ln2w, v.ln2b)
            K.linear_forward(fch_gelu, ln, w.fcw, v.fcb, pre_gelu=fch)
            K.linear_forward(x, fch_gelu, w.fcprojw, v.fcprojb, residual=x)
        K.layernorm_forward(ln, mean, rstd, x, p.lnfw, p.lnfb)
        return ln

    def _logits(self, x: np.ndarray) -> np.ndarray:
        """x [S, C] -> logits [S, V]; valid until the next call."""
        logits = self.arrays["logits"][: len(x)]
        head = GPT2.head(self.config, self.weights)
        self.kernels.linear_forward(logits, np.ascontiguousarray(x), head)
        return logits
