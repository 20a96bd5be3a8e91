"""GPT-2 at inference: its blocks over the rows that are read or continued."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmpy.config import GPT2Config
from llmpy.memory import MemoryPlan
from llmpy.models.decoder import Attend, Decoder
from llmpy.models.gpt2 import GPT2


class GPT2Decoder(Decoder[GPT2Config]):
    """See Decoder. Positions are learned: a slot cannot be shifted."""

    def _plan_activations(self, plan: MemoryPlan, rows: int) -> None:
        C = self.config.channels
        for name, width in (("x", C), ("ln", C), ("qkv", 3 * C), ("att", C), ("fch", 4 * C), ("fch_gelu", 4 * C)):
            plan.add("activations", name, rows, width, dtype=self.numbers)
        plan.add("activations", "mean", rows)
        plan.add("activations", "rstd", rows)

    def _head(self) -> Any:
        return GPT2.head(self.config, self.weights)

    def _blocks(self, tokens: np.ndarray, positions: np.ndarray, attend: Attend) -> np.ndarray:
        p, K, rows = self.parameters, self.kernels, tokens.size
        x, ln, qkv, att, fch, fch_gelu, mean, rstd = (
            self.arrays[name][:rows] for name in ("x", "ln", "qkv", "att", "fch", "fch_gelu", "mean", "rstd")
        )
        q, k, v = np.split(qkv.reshape(*tokens.shape, -1, self.config.head_size), 3, axis=2)
        at = positions[:, None] + np.arange(tokens.shape[1])
        x.reshape(*tokens.shape, -1)[:] = p.wte[tokens] + p.wpe[at]  # the kernel's positions are the same in all rows
        for layer, (vectors, w) in enumerate(zip(p.layers, self.weights.layers, strict=True)):
            K.layernorm_forward(ln, mean, rstd, x, vectors.ln1w, vectors.ln1b)
            K.linear_forward(qkv, ln, w.qkvw, vectors.qkvb)
            attend(layer, att.reshape(q.shape), q, k, v)
            K.linear_forward(x, att, w.attprojw, vectors.attprojb, residual=x)
            K.layernorm_forward(ln, mean, rstd, x, vectors.ln2w, vectors.ln2b)
            K.linear_forward(fch_gelu, ln, w.fcw, vectors.fcb, pre_gelu=fch)
            K.linear_forward(x, fch_gelu, w.fcprojw, vectors.fcprojb, residual=x)
        K.layernorm_forward(ln, mean, rstd, x, p.lnfw, p.lnfb)
        return ln
