"""GPT-2 at inference: its blocks over the rows that are read or continued."""

from __future__ import annotations

import numpy as np

from llmpy.models.config import GPT2Config
from llmpy.models.decoder import Attend, Decoder
from llmpy.utils.memory import MemoryPlan


class GPT2Decoder(Decoder[GPT2Config]):
    """See Decoder. Positions are learned: a slot cannot be shifted."""

    def _plan_activations(self, plan: MemoryPlan, rows: int) -> None:
        C = self.config.channels
        for name, width in (("x", C), ("ln", C), ("qkv", 3 * C), ("att", C), ("fch", 4 * C), ("fch_gelu", 4 * C)):
            plan.add("activations", name, rows, width, dtype=self.numbers)
        plan.add("activations", "mean", rows)
        plan.add("activations", "rstd", rows)

    def _read_block(self, x: np.ndarray, start: int, attend: Attend) -> None:
        K, T = self.kernels, len(x)
        ln, qkv, att, fch, fch_gelu, mean, rstd = (
            self.arrays[name][:T] for name in ("ln", "qkv", "att", "fch", "fch_gelu", "mean", "rstd")
        )
        NH, heads = self.config.heads, qkv.reshape(T, -1, self.config.head_size)
        q, k, v = heads[:, :NH], heads[:, NH : 2 * NH], heads[:, 2 * NH :]
        for layer, w in enumerate(self.weights.layers):
            K.layernorm_forward(ln, mean, rstd, x, w.ln1w, w.ln1b)
            K.linear_forward(qkv, ln, w.qkv, w.qkvb)
            attend(layer, att.reshape(q.shape), q, k, v)
            K.linear_forward(x, att, w.attproj, w.attprojb, residual=x)
            K.layernorm_forward(ln, mean, rstd, x, w.ln2w, w.ln2b)
            K.linear_forward(fch_gelu, ln, w.fc, w.fcb, pre_gelu=fch)
            K.linear_forward(x, fch_gelu, w.fcproj, w.fcprojb, residual=x)
