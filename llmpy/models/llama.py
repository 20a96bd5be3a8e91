"""Llama (Touvron et al. 2023, and its relatives): forward and backward, on one page, over the kernel contract.

    residual = wte[token]
    for every layer:
        q, k, v = qkv(rmsnorm(residual)), q and k turned by their position
        residual += attproj(attention(q, k, v))
        gate, up = gateup(rmsnorm(residual))
        residual += down(silu(gate) * up)
    logits = rmsnorm(residual) @ lm_head.T        (of wte where the two are tied)

What backward needs is kept by forward: the residual stream before each half of a block, the turned qkv, attention's
output, and gate and up. Not kept are RMSNorm's outputs, which cost a thousandth of a step, and SwiGLU's, which its
backward pass has at hand anyway. Gradients of activations are written over the activations they belong to.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from llmpy.models.config import LlamaConfig
from llmpy.models.precision import dtype
from llmpy.models.rope import rotations
from llmpy.models.transformer import Transformer, Weights
from llmpy.utils.memory import MemoryPlan


class _Kept(NamedTuple):
    """Of one layer: mid [N, C]; qkv [N, (NH + 2 NKV) hs], and views of it [B, T, heads, hs]; att [N, NH hs], lse
    [B, NH, T]; gateup [N, 2 H]."""

    mid: np.ndarray
    qkv: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    att: np.ndarray
    lse: np.ndarray
    gateup: np.ndarray


class Llama(Transformer[LlamaConfig]):
    """A Llama with its parameters and, where B and T are given, all that training it takes; see Transformer.

    `recompute` 1 makes gate and up again in the backward pass: about half of the activations, for a seventh more
    arithmetic.
    """

    @staticmethod
    def plan_activations(
        plan: MemoryPlan, config: LlamaConfig, B: int, T: int, recompute: int, precision: str = "float32"
    ) -> None:
        """Add what a forward and backward pass over B sequences of T tokens needs."""
        L, C, H, N = config.layers, config.channels, config.hidden, B * T
        NH, NKV, hs = config.heads, config.kv_heads, config.head_size
        kept = 1 if recompute == 2 else L
        add, exact = partial(plan.add, "activations", dtype=dtype(precision)), partial(plan.add, "activations")
        add("residual", L + 1, N, C)  # before each block, and after the last
        add("residual_mid", kept, N, C)  # between a block's two halves
        add("qkv", kept, B, T, NH + 2 * NKV, hs)
        add("att", kept, N, NH * hs)
        exact("lse", kept, B, NH, T)
        add("gateup", L if recompute == 0 else 1, N, 2 * H)
        add("hidden", N, H)
        add("ln", N, C)
        exact("ln_rstd", N)
        add("dresidual", N, C)
        add("scratch", N * max(C, NH * hs))  # a gradient by attention's output, or one as wide as the residual
        exact("losses", N)
        exact("cos", T, hs // 2)
        exact("sin", T, hs // 2)

    @staticmethod
    def head(config: LlamaConfig, weights: Weights) -> Any:
        return weights["wte" if config.tied else "lm_headw"]

    def _begin(self) -> None:
        cos, sin = self.arrays["cos"], self.arrays["sin"]
        cos[:], sin[:] = rotations(self.config, self.sequence_length)
        self._rope = cos, sin, self.config.rope_interleaved

    def _only_added_to(self) -> set[str]:
        return set() if self.config.tied else {"wte"}

    # ---- forward ---------------------------------------------------------------------------------------------------

    def _kept(self, layer: int) -> _Kept:
        """What forward keeps of a layer; a buffer that holds one layer is shared by all of them."""
        a, NH, NKV = self.arrays, self.config.heads, self.config.kv_heads
        mid, qkv, att, lse, gateup = (
            a[name][layer % len(a[name])] for name in ("residual_mid", "qkv", "att", "lse", "gateup")
        )
        q, k, v = qkv[:, :, :NH], qkv[:, :, NH : NH + NKV], qkv[:, :, NH + NKV :]
        return _Kept(mid, qkv.reshape(len(mid), -1), q, k, v, att, lse, gateup)

    def _norm(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """rmsnorm(x) [N, C], valid until the next one"""
        self.kernels.rmsnorm_forward(self.arrays["ln"], self.arrays["ln_rstd"], x, w, self.config.norm_eps)
        return self.arrays["ln"]

    def _embed(self, tokens: np.ndarray) -> None:
        self.kernels.embedding_forward(
            self.arrays["residual"][0].reshape(*tokens.shape, -1), tokens, self.parameters.wte
        )

    def _attention_half(self, layer: int) -> None:
        """residual[layer] -> mid"""
        p, w, K, a = self.parameters.layers[layer], self.weights.layers[layer], self.kernels, self.arrays
        x, kept = a["residual"][layer], self._kept(layer)
        K.linear_forward(kept.qkv, self._norm(x, p.ln1w), w.qkvw, getattr(p, "qkvb", None))
        K.attention_forward(kept.att.reshape(kept.q.shape), kept.lse, kept.q, kept.k, kept.v, self._rope)
        self._add_to_residual(kept.mid, kept.att, w.attprojw, None, x, 2 * layer + 1)

    def _gate_and_up(self, layer: int) -> None:
        """mid -> gateup"""
        p, w, kept = self.parameters.layers[layer], self.weights.layers[layer], self._kept(layer)
        self.kernels.linear_forward(kept.gateup, self._norm(kept.mid, p.ln2w), w.gateupw)

    def _block_forward(self, layer: int) -> None:
        a, kept, w = self.arrays, self._kept(layer), self.weights.layers[layer].downw
        self._attention_half(layer)
        self._gate_and_up(layer)
        self.kernels.swiglu_forward(a["hidden"], kept.gateup)
        self._add_to_residual(a["residual"][layer + 1], a["hidden"], w, None, kept.mid, 2 * layer + 2)

    def _last_norm(self) -> np.ndarray:
        return self._norm(self.arrays["residual"][-1], self.parameters.lnfw)

    # ---- backward --------------------------------------------------------------------------------------------------

    def _dx(self) -> np.ndarray:
        return self.arrays["scratch"][: self.arrays["ln"].size].reshape(self.arrays["ln"].shape)

    def _last_norm_backward(self, dx: np.ndarray) -> None:
        a, w, dw = self.arrays, self.parameters.lnfw, self.gradients.lnfw
        self.kernels.rmsnorm_backward(a["dresidual"], dw, dx, a["residual"][-1], w, a["ln_rstd"])

    def _block_backward(self, layer: int, accumulate: bool) -> None:
        p, w, g = self.parameters.layers[layer], self.weights.layers[layer], self.gradients.layers[layer]
        K, a = self.kernels, self.arrays
        mid, qkv, q, k, v, att, lse, gateup = self._kept(layer)
        x, dresidual, hidden, rstd = a["residual"][layer], a["dresidual"], a["hidden"], a["ln_rstd"]
        linear_backward = partial(K.linear_backward, accumulate=accumulate)
        if self.recompute == 2:
            self._attention_half(layer)
        if self.recompute:
            self._gate_and_up(layer)

        # A gradient is written over what it is the gradient of: x and dx of a linear layer may share their memory.
        # SwiGLU's output comes from its backward pass, in time for the gradient of the weights that it met.
        dy = self._of_addition(self._dx(), 2 * layer + 2)
        linear_backward(hidden, None, None, dy, hidden, w.downw)
        K.swiglu_backward(gateup, hidden, hidden, gateup)
        linear_backward(None, g.downw, None, dy, hidden, w.downw)
        ln = self._norm(mid, p.ln2w)
        linear_backward(ln, g.gateupw, None, gateup, ln, w.gateupw)
        K.rmsnorm_backward(dresidual, g.ln2w, ln, mid, p.ln2w, rstd)

        datt = a["scratch"][: att.size].reshape(att.shape)
        linear_backward(datt, g.attprojw, None, self._of_addition(ln, 2 * layer + 1), att, w.attprojw)
        K.attention_backward(q, k, v, datt.reshape(q.shape), q, k, v, att.reshape(q.shape), lse, self._rope)
        ln = self._norm(x, p.ln1w)
        linear_backward(ln, g.qkvw, getattr(g, "qkvb", None), qkv, ln, w.qkvw)
        K.rmsnorm_backward(dresidual, g.ln1w, ln, x, p.ln1w, rstd)

    def _embed_backward(self, tokens: np.ndarray) -> None:
        dx = self.arrays["dresidual"].reshape(*tokens.shape, -1)
        self.kernels.embedding_backward(self.gradients.wte, None, dx, tokens)
