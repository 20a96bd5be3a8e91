"""Llama at inference: its blocks over the rows that are read or continued, and keys that can be turned back."""

from __future__ import annotations

import numpy as np

from llmpy.models.config import LlamaConfig
from llmpy.models.decoder import Attend, Decoder
from llmpy.models.rope import rotations
from llmpy.utils.memory import MemoryPlan


class LlamaDecoder(Decoder[LlamaConfig]):
    """See Decoder."""

    can_shift = True

    def _plan_activations(self, plan: MemoryPlan, rows: int) -> None:
        c = self.config
        C, H, q, kv = c.channels, c.hidden, c.heads * c.head_size, c.kv_heads * c.head_size
        widths = {"x": C, "ln": C, "q": q, "k": kv, "v": kv, "att": q, "gate": H, "up": H}
        for name, width in widths.items():
            plan.add("activations", name, rows, width, dtype=self.numbers)
        plan.add("activations", "rstd", rows)
        plan.add("positions", "back", c.context, dtype=np.int32)
        plan.add("activations", "cos", c.context, c.head_size // 2)
        plan.add("activations", "sin", c.context, c.head_size // 2)

    def _begin(self) -> None:
        self.arrays["cos"][:], self.arrays["sin"][:] = rotations(self.config, self.config.context)

    def _read_block(self, x: np.ndarray, start: int, attend: Attend) -> None:
        K, c, T = self.kernels, self.config, len(x)
        ln, q, k, v, att, gate, up, rstd = (
            self.arrays[name][:T] for name in ("ln", "q", "k", "v", "att", "gate", "up", "rstd")
        )
        cos, sin, at = (self.arrays[name] for name in ("cos", "sin", "start"))
        q_heads, k_heads, v_heads, att_heads = (each.reshape(T, -1, c.head_size) for each in (q, k, v, att))
        for layer, w in enumerate(self.weights.layers):
            K.rmsnorm_forward(ln, rstd, x, w.ln1w, c.norm_eps)
            for y, matrix, bias in ((q, w.q, w.qb), (k, w.k, w.kb), (v, w.v, w.vb)):
                K.linear_forward(y, ln, matrix, bias)
            for heads in (q_heads, k_heads):
                K.rope_forward(heads[None], cos, sin, c.rope_interleaved, at)
            attend(layer, att_heads, q_heads, k_heads, v_heads)
            K.linear_forward(x, att, w.attproj, residual=x)
            K.rmsnorm_forward(ln, rstd, x, w.ln2w, c.norm_eps)
            K.linear_forward(gate, ln, w.gate)
            K.linear_forward(up, ln, w.up)
            K.swiglu_forward(gate, gate, up)
            K.linear_forward(x, gate, w.down, residual=x)

    def shift(self, slot: int, keep: int, drop: int) -> None:
        """As Decoder says. A key that was turned to its position is turned back by `drop` positions, which is where a
        key turned to the new position would be: angles add up."""
        moved = self.config.context - keep - drop
        back = self.arrays["back"][:moved]
        back[:] = drop
        for layer in range(self.config.layers):
            keys, values = self.arrays["keys"][layer, slot], self.arrays["values"][layer, slot]
            for cache in (keys, values):
                self.kernels.copy(cache[keep : keep + moved], cache[keep + drop :])
            turned = keys[keep : keep + moved, None]  # [moved, 1, NKV, hs]: every token a sequence at position `drop`
            self.kernels.rope_backward(
                turned, self.arrays["cos"], self.arrays["sin"], self.config.rope_interleaved, back
            )
