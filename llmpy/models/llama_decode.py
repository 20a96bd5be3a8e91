"""Llama at inference: its blocks over the rows that are read or continued, and keys that can be turned back."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmpy.config import LlamaConfig
from llmpy.memory import MemoryPlan
from llmpy.models.decoder import Attend, Decoder
from llmpy.models.llama import Llama
from llmpy.models.rotary import rotations


class LlamaDecoder(Decoder[LlamaConfig]):
    """See Decoder."""

    can_shift = True

    def _plan_activations(self, plan: MemoryPlan, rows: int) -> None:
        c = self.config
        C, H, attention = c.channels, c.hidden, c.heads * c.head_size
        qkv = attention + 2 * c.kv_heads * c.head_size
        for name, width in (("x", C), ("ln", C), ("qkv", qkv), ("att", attention), ("gateup", 2 * H), ("hidden", H)):
            plan.add("activations", name, rows, width, dtype=self.numbers)
        plan.add("activations", "rstd", rows)
        plan.add("activations", "cos", c.context, c.head_size // 2)
        plan.add("activations", "sin", c.context, c.head_size // 2)

    def _begin(self) -> None:
        self.arrays["cos"][:], self.arrays["sin"][:] = rotations(self.config, self.config.context)

    def _head(self) -> Any:
        return Llama.head(self.config, self.weights)

    def _blocks(self, tokens: np.ndarray, positions: np.ndarray, attend: Attend) -> np.ndarray:
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
        return ln

    def shift(self, slot: int, keep: int, drop: int) -> None:
        """As Decoder says. A key that was turned to its position is turned back by `drop` positions, which is where a
        key turned to the new position would be: angles add up."""
        moved = self.config.context - keep - drop
        back = np.full(moved, drop, np.int32)
        for layer in range(self.config.layers):
            keys, values = self.arrays["keys"][layer, slot], self.arrays["values"][layer, slot]
            for cache in (keys, values):
                cache[keep : keep + moved] = cache[keep + drop :]
            turned = keys[keep : keep + moved, None]  # [moved, 1, NKV, hs]: every token a sequence at position `drop`
            self.kernels.rope_backward(
                turned, self.arrays["cos"], self.arrays["sin"], self.config.rope_interleaved, back
            )
