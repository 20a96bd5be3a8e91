"""Decoding: one token for each of a few sequences over a KV cache. A model's forward pass, one position long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmpy.kernels.defaults import embed_rows
from llmpy.kernels.reference.attention import attention_decode
from llmpy.kernels.reference.gelu import gelu_forward
from llmpy.kernels.reference.layernorm import layernorm_forward
from llmpy.kernels.reference.linear import linear_forward
from llmpy.kernels.reference.rmsnorm import rmsnorm_forward
from llmpy.kernels.reference.rope import rope_forward
from llmpy.kernels.reference.swiglu import swiglu_forward

if TYPE_CHECKING:
    from llmpy.models.config import ModelConfig
    from llmpy.models.inference_weights import StoredWeights


class Decode:
    """Decodes with the weights of a model, over a KV cache that the caller may write, too.

    keys and values [L, slots, T, NKV, hs]; cos and sin [T, hs / 2] of every position, for a Llama.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: StoredWeights,
        keys: np.ndarray,
        values: np.ndarray,
        cos: np.ndarray | None = None,
        sin: np.ndarray | None = None,
    ) -> None:
        self.config: Any = config
        self.weights, self.keys, self.values, self.cos, self.sin = weights, keys, values, cos, sin
        self.is_llama = cos is not None

    def __call__(self, logits: np.ndarray, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> None:
        """Computes logits [S, V] after the newest tokens of S slots, and writes those tokens to the KV cache.

        tokens, slots and positions int32 [S]
        """
        c, S = self.config, len(tokens)
        slots, positions = np.broadcast_to(slots, S), np.broadcast_to(positions, S).astype(np.int32)
        x = np.empty((S, c.channels))
        embed_rows(x, self.weights, tokens, positions)
        for layer, w in enumerate(self.weights.layers):
            q, k, v = (part.reshape(S, 1, -1, c.head_size) for part in self._qkv(w, self._norm(x, w, "ln1")))
            if self.is_llama:
                for each in (q, k):
                    rope_forward(each, self.cos, self.sin, c.rope_interleaved, positions)
            self.keys[layer, slots, positions], self.values[layer, slots, positions] = k[:, 0], v[:, 0]
            attention = np.empty_like(q[:, 0])
            attention_decode(attention, q[:, 0], self.keys[layer], self.values[layer], positions, slots)
            x += _linear(attention.reshape(S, -1), w.attproj, getattr(w, "attprojb", None))
            x += self._mlp(w, self._norm(x, w, "ln2"))
        logits[:] = _linear(self._norm(x, self.weights, "lnf"), self.weights.head[: c.vocab_size])

    def renew(self) -> None:
        """Does nothing: every call reads the weights anew."""

    def _norm(self, x: np.ndarray, w: Any, name: str) -> np.ndarray:
        y, mean, rstd = np.empty_like(x), np.empty(len(x)), np.empty(len(x))
        if self.is_llama:
            rmsnorm_forward(y, rstd, x, getattr(w, f"{name}w"), self.config.norm_eps)
        else:
            layernorm_forward(y, mean, rstd, x, getattr(w, f"{name}w"), getattr(w, f"{name}b"))
        return y

    def _qkv(self, w: Any, x: np.ndarray) -> list[np.ndarray]:
        if self.is_llama:
            return [_linear(x, getattr(w, name), getattr(w, f"{name}b")) for name in "qkv"]
        return np.split(_linear(x, w.qkv, w.qkvb), 3, axis=1)

    def _mlp(self, w: Any, x: np.ndarray) -> np.ndarray:
        if self.is_llama:
            gate, up = _linear(x, w.gate), _linear(x, w.up)
            hidden = np.empty_like(gate)
            swiglu_forward(hidden, gate, up)
            return _linear(hidden, w.down)
        before = _linear(x, w.fc, w.fcb)
        hidden = np.empty_like(before)
        gelu_forward(hidden, before)
        return _linear(hidden, w.fcproj, w.fcprojb)


def _linear(x: np.ndarray, w: Any, b: np.ndarray | None = None) -> np.ndarray:
    y = np.empty((len(x), w.shape[0]))
    linear_forward(y, x, w, b)
    return y
