"""GPT-2 (Radford et al. 2019) and GPT-3 shapes: forward and backward, on one page, over the kernel contract.

    residual = wte[token] + wpe[position]
    for every layer:
        residual += attproj(attention(qkv(layernorm(residual))))
        residual += fcproj(gelu(fc(layernorm(residual))))
    logits = layernorm(residual) @ lm_head.T      (wte where the two are tied)

What backward needs is kept by forward: the residual stream before each half of a block, qkv, the attention's output,
and the MLP's hidden layer before GELU. LayerNorm's outputs and GELU's are not kept: making them again costs a
thousandth of a step. Gradients of activations are written over the activations they belong to, so that backward needs
next to no memory of its own.

In bfloat16 the activations and their gradients are that, and the products read a bfloat16 copy of the matrices; the
parameters, their gradients, the logits and the loss are float32 as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from llmpy.models.bf16_weights import BFloat16Weights
from llmpy.models.config import ModelConfig, check_shared_evenly, check_whole_numbers
from llmpy.models.decoder import Attend, Decoder
from llmpy.models.parameters import ParameterSpec
from llmpy.models.precision import dtype
from llmpy.models.transformer import Transformer, Weights
from llmpy.utils.memory import MemoryPlan

GPT2_VOCAB_SIZE = 50257


@dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """Sizes of a GPT-2 or GPT-3 model. `context` is the longest sequence it has positions for (maxT in llm.c)."""

    family: ClassVar[str] = "gpt2"

    vocab_size: int = GPT2_VOCAB_SIZE
    context: int = 1024
    layers: int = 12
    heads: int = 12
    channels: int = 768
    tied: bool = True  # the head is the embedding

    def __post_init__(self) -> None:
        check_whole_numbers(self, "vocab_size", "context", "layers", "heads", "channels")
        check_shared_evenly(self.channels, self.heads)

    @property
    def head_size(self) -> int:  # type: ignore[override]
        return self.channels // self.heads

    @property
    def padded_vocab_size(self) -> int:
        """The next multiple of 128: the rows of `wte` in memory and in llm.c's files."""
        return -(-self.vocab_size // 128) * 128

    @property
    def kv_heads(self) -> int:  # type: ignore[override]
        """The heads of keys and values: every query head has its own."""
        return self.heads

    def parameter_table(self) -> list[ParameterSpec]:
        """The tensors of the model, in the order of memory and of llm.c's files."""
        return gpt2_table(self)


def gpt2_table(config: GPT2Config) -> list[ParameterSpec]:
    """The 16 tensors of GPT-2 in llm.c's file order, which is also the order in memory; an untied head follows."""
    V, Vp, T, C, L = config.vocab_size, config.padded_vocab_size, config.context, config.channels, config.layers
    residual_std = 0.02 / (2 * L) ** 0.5  # GPT-2 scales what is added to the residual stream by the number of additions

    def weight(name: str, out: int, inp: int, huggingface: str, std: float = 0.02) -> ParameterSpec:
        return ParameterSpec(
            name, (L, out, inp), True, "normal", std, huggingface=f"h.{{}}.{huggingface}.weight", transposed=True,
            product=True, stored=(name.removesuffix("w"),),
        )  # fmt: skip

    def vector(name: str, size: int, huggingface: str, init: Literal["zeros", "ones"] = "zeros") -> ParameterSpec:
        return ParameterSpec(name, (L, size), False, init, huggingface=f"h.{{}}.{huggingface}")

    wte = ParameterSpec(
        "wte", (Vp, C), True, "normal", 0.02, rows=V, per_layer=False, huggingface="wte.weight",
        product=config.tied, stored=("embedding",),
    )  # fmt: skip
    head = ParameterSpec(
        "lm_headw", (V, C), True, "normal", 0.02, per_layer=False, huggingface="lm_head.weight", product=True,
        stored=("head",),
    )  # fmt: skip
    return [
        wte,
        ParameterSpec("wpe", (T, C), True, "normal", 0.02, per_layer=False, huggingface="wpe.weight"),
        vector("ln1w", C, "ln_1.weight", "ones"),
        vector("ln1b", C, "ln_1.bias"),
        weight("qkvw", 3 * C, C, "attn.c_attn"),
        vector("qkvb", 3 * C, "attn.c_attn.bias"),
        weight("attprojw", C, C, "attn.c_proj", residual_std),
        vector("attprojb", C, "attn.c_proj.bias"),
        vector("ln2w", C, "ln_2.weight", "ones"),
        vector("ln2b", C, "ln_2.bias"),
        weight("fcw", 4 * C, C, "mlp.c_fc"),
        vector("fcb", 4 * C, "mlp.c_fc.bias"),
        weight("fcprojw", C, 4 * C, "mlp.c_proj", residual_std),
        vector("fcprojb", C, "mlp.c_proj.bias"),
        ParameterSpec("lnfw", (C,), False, "ones", per_layer=False, huggingface="ln_f.weight"),
        ParameterSpec("lnfb", (C,), False, "zeros", per_layer=False, huggingface="ln_f.bias"),
        *([] if config.tied else [head]),
    ]


class _Kept(NamedTuple):
    """Saved activations: mid, att [N, C]; qkv [N, 3C], q, k, v [B, T, NH, hs] views of it; lse [B, NH, T]; fch [N,
    4C]."""

    mid: np.ndarray
    qkv: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    att: np.ndarray
    lse: np.ndarray
    fch: np.ndarray


class GPT2(Transformer[GPT2Config]):
    """A GPT-2 with its parameters and, where B and T are given, all that training it takes; see Transformer.

    `recompute` 1 recomputes the MLP's hidden layer in the backward pass.
    """

    @staticmethod
    def plan_activations(
        plan: MemoryPlan, config: GPT2Config, B: int, T: int, recompute: int, precision: str = "float32"
    ) -> None:
        """Add what a forward and backward pass over B sequences of T tokens needs. `recompute`: see GPT2."""
        L, C, NH, N = config.layers, config.channels, config.heads, B * T
        kept, kept_mlp, numbers = 1 if recompute == 2 else L, L if recompute == 0 else 1, dtype(precision)

        def activations(name: str, *shape: int) -> None:
            plan.add("activations", name, *shape, dtype=numbers)

        activations("residual", L + 1, N, C)  # before each block, and after the last
        activations("residual_mid", kept, N, C)  # between a block's two halves
        activations("qkv", kept, B, T, 3, NH, C // NH)
        activations("att", kept, N, C)
        plan.add("activations", "lse", kept, B, NH, T)
        activations("fch", kept_mlp, N, 4 * C)
        activations("fch_gelu", N, 4 * C)  # and in the backward pass the gradient of fch
        activations("ln", N, C)
        plan.add("activations", "ln_mean", N)
        plan.add("activations", "ln_rstd", N)
        activations("dresidual", N, C)
        activations("datt", N, C)
        plan.add("activations", "losses", N)

    @staticmethod
    def head(config: GPT2Config, weights: Weights) -> Any:
        """The head [V, C]: where tied, the embedding of tokens without its padding."""
        if not config.tied:
            return weights["lm_headw"]
        return weights["wte"] if isinstance(weights, BFloat16Weights) else weights.wte[: config.vocab_size]

    def _only_added_to(self) -> set[str]:
        return {"wpe"} if self.config.tied else {"wte", "wpe"}

    def _embed(self, tokens: np.ndarray) -> None:
        x, p = self.arrays["residual"][0], self.parameters
        self.kernels.embedding_forward(x.reshape(*tokens.shape, -1), tokens, p.wte, p.wpe)

    def _embed_backward(self, tokens: np.ndarray) -> None:
        dx, g = self.arrays["dresidual"], self.gradients
        self.kernels.embedding_backward(g.wte, g.wpe, dx.reshape(*tokens.shape, -1), tokens)

    def _last_norm(self) -> np.ndarray:
        a, p = self.arrays, self.parameters
        self.kernels.layernorm_forward(a["ln"], a["ln_mean"], a["ln_rstd"], a["residual"][-1], p.lnfw, p.lnfb)
        return a["ln"]

    def _dx(self) -> np.ndarray:
        return self.arrays["datt"]

    def _last_norm_backward(self, dx: np.ndarray) -> None:
        a, p, g = self.arrays, self.parameters, self.gradients
        x, mean, rstd = a["residual"][-1], a["ln_mean"], a["ln_rstd"]
        self.kernels.layernorm_backward(a["dresidual"], g.lnfw, g.lnfb, dx, x, p.lnfw, mean, rstd)

    # ---- forward and backward through one block --------------------------------------------------------------------

    def _kept(self, layer: int) -> _Kept:
        """Returns the saved activations of a layer; all layers share a buffer that holds one layer."""
        a = self.arrays
        mid, qkv, att, lse, fch = (
            a[name][layer % len(a[name])] for name in ("residual_mid", "qkv", "att", "lse", "fch")
        )
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        return _Kept(mid, qkv.reshape(len(mid), -1), q, k, v, att, lse, fch)

    def _block_forward(self, layer: int) -> None:
        p, w, K, a = self.parameters.layers[layer], self.weights.layers[layer], self.kernels, self.arrays
        x, y, kept, hidden = a["residual"][layer], a["residual"][layer + 1], self._kept(layer), a["fch_gelu"]
        mid, ln, mean, rstd = kept.mid, a["ln"], a["ln_mean"], a["ln_rstd"]

        K.layernorm_forward(ln, mean, rstd, x, p.ln1w, p.ln1b)
        K.linear_forward(kept.qkv, ln, w.qkvw, p.qkvb)
        K.attention_forward(kept.att.reshape(kept.q.shape), kept.lse, kept.q, kept.k, kept.v)
        self._add_to_residual(mid, kept.att, w.attprojw, p.attprojb, x, 2 * layer + 1)

        K.layernorm_forward(ln, mean, rstd, mid, p.ln2w, p.ln2b)
        K.linear_forward(hidden, ln, w.fcw, p.fcb, pre_gelu=kept.fch)
        self._add_to_residual(y, hidden, w.fcprojw, p.fcprojb, mid, 2 * layer + 2)

    def _block_backward(self, layer: int, accumulate: bool) -> None:
        p, w, g = self.parameters.layers[layer], self.weights.layers[layer], self.gradients.layers[layer]
        K, a = self.kernels, self.arrays
        mid, qkv, q, k, v, att, lse, fch = self._kept(layer)
        x, dresidual, ln, mean, rstd = a["residual"][layer], a["dresidual"], a["ln"], a["ln_mean"], a["ln_rstd"]
        dfch = a["fch_gelu"]
        linear_backward = partial(K.linear_backward, accumulate=accumulate)
        if self.recompute == 2:
            self._block_forward(layer)

        # A gradient is written over what it is the gradient of: x and dx of a linear layer may share their memory.
        K.layernorm_forward(ln, mean, rstd, mid, p.ln2w, p.ln2b)
        if self.recompute == 1:
            K.linear_forward(dfch, ln, w.fcw, p.fcb, pre_gelu=fch)
        dy = self._of_addition(a["datt"], 2 * layer + 2)
        linear_backward(dfch, g.fcprojw, g.fcprojb, dy, fch, w.fcprojw, gelu=True)
        linear_backward(ln, g.fcw, g.fcb, dfch, ln, w.fcw)
        K.layernorm_backward(dresidual, g.ln2w, g.ln2b, ln, mid, p.ln2w, mean, rstd)

        datt, dy = a["datt"], self._of_addition(ln, 2 * layer + 1)
        linear_backward(datt, g.attprojw, g.attprojb, dy, att, w.attprojw)
        K.attention_backward(q, k, v, datt.reshape(q.shape), q, k, v, att.reshape(q.shape), lse)
        K.layernorm_forward(ln, mean, rstd, x, p.ln1w, p.ln1b)
        linear_backward(ln, g.qkvw, g.qkvb, qkv, ln, w.qkvw)
        K.layernorm_backward(dresidual, g.ln1w, g.ln1b, ln, x, p.ln1w, mean, rstd)


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
