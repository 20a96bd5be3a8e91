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

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from llmpy.errors import UserError
from llmpy.models.config import ModelConfig, RopeScaling, check_positive, check_shared_evenly, check_whole_numbers
from llmpy.models.decoder import Attend, Decoder
from llmpy.models.parameters import Init, ParameterSpec
from llmpy.models.precision import dtype
from llmpy.models.rope import rotations
from llmpy.models.transformer import Transformer, Weights
from llmpy.utils.memory import MemoryPlan

HIDDEN_MULTIPLE = 32  # llama2.c rounds the intermediate size up to a multiple of this


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Sizes of a model of the Llama family (Llama 2 and 3, TinyLlama, SmolLM, Qwen 2): RMSNorm, rotated positions,
    SwiGLU, and `kv_heads` heads of keys and values that groups of query heads share.

    `kv_heads`, `hidden` and `head_size` left at 0 follow from the others: as many as `heads`; llama2.c's rule;
    `channels // heads`. They are never 0 in a config that exists.
    """

    family: ClassVar[str] = "llama"

    vocab_size: int = 32000
    context: int = 1024
    layers: int = 12
    heads: int = 12
    kv_heads: int = 0
    channels: int = 768
    hidden: int = 0  # the width of the gate and of the up projection
    head_size: int = 0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleaved: bool = (
        True  # rotated pairs: (0, 1), (2, 3) as Meta and llama2.c; False: (i, i + hs/2) as Hugging Face
    )
    tied: bool = True  # the head is the embedding
    qkv_bias: bool = False  # Qwen 2 has one
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_whole_numbers(self, "vocab_size", "context", "layers", "heads", "channels")
        if self.head_size == 0:
            check_shared_evenly(self.channels, self.heads)
        hidden = -(-int(2 * 4 * self.channels / 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE
        derived = {"kv_heads": self.heads, "hidden": hidden, "head_size": self.channels // self.heads}
        for name, value in derived.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        check_whole_numbers(self, *derived)
        check_positive(self, "rope_theta", "norm_eps")
        if self.heads % self.kv_heads:
            fits = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise UserError(
                f"{self.heads} heads cannot share {self.kv_heads} heads of keys and values:"
                f" use {', '.join(map(str, fits))}"
            )
        if self.head_size % 2:
            raise UserError(f"the head size must be even, for positions rotate pairs of channels, not {self.head_size}")

    @property
    def padded_vocab_size(self) -> int:
        """The rows of `wte` in memory: Llama's tables have no padding."""
        return self.vocab_size

    def parameter_table(self) -> list[ParameterSpec]:
        """The tensors of the model, in the order of memory."""
        return llama_table(self)

    def with_rope_interleaved(self, interleaved: bool) -> LlamaConfig:
        """Returns the config with the rotated channels as neighbours (True) or half a head apart (False)."""
        return replace(self, rope_interleaved=interleaved)

    def reshaped(self, **sizes: int) -> LlamaConfig:
        """Replaces the sizes that are given and not 0; kv_heads, hidden and head_size follow where they must."""
        given: dict[str, Any] = {name: size for name, size in sizes.items() if size}
        if "heads" in given and "kv_heads" not in given:  # as many query heads to a group as before, where possible
            group = self.heads // self.kv_heads
            given["kv_heads"] = given["heads"] // group if given["heads"] % group == 0 else given["heads"]
        if "channels" in given:
            given.setdefault("hidden", 0)
        if "heads" in given or "channels" in given:
            given["head_size"] = 0
        return replace(self, **given)


def llama_table(config: LlamaConfig) -> list[ParameterSpec]:
    """The tensors of a Llama. `qkvw` has the rows of q, k, v one after the other; `gateupw` those of gate, then up."""
    V, C, L, H, hs = config.vocab_size, config.channels, config.layers, config.hidden, config.head_size
    q, kv = config.heads * hs, config.kv_heads * hs
    residual_std = 0.02 / (2 * L) ** 0.5

    def single(name: str, huggingface: str, stored: str) -> ParameterSpec:
        multiplied = config.tied or name != "wte"
        return ParameterSpec(
            name, (V, C), True, "normal", 0.02, per_layer=False, huggingface=huggingface, product=multiplied,
            stored=(stored,),
        )  # fmt: skip

    def layer(
        name: str, shape: tuple[int, ...], init: Init, std: float, stored: str, *parts: tuple[str, int]
    ) -> ParameterSpec:
        named = tuple((f"model.layers.{{}}.{part}", rows) for part, rows in parts)
        whole, matrix = len(named) == 1, len(shape) == 2
        return ParameterSpec(
            name, (L, *shape), matrix, init, std, huggingface=named[0][0] if whole else "", product=matrix,
            parts=() if whole else named, stored=tuple(stored.split()),
        )  # fmt: skip

    def qkv(kind: str) -> list[tuple[str, int]]:
        return [(f"self_attn.{letter}_proj.{kind}", rows) for letter, rows in (("q", q), ("k", kv), ("v", kv))]

    return [
        single("wte", "model.embed_tokens.weight", "embedding"),
        layer("ln1w", (C,), "ones", 0.0, "ln1w", ("input_layernorm.weight", C)),
        layer("qkvw", (q + 2 * kv, C), "normal", 0.02, "q k v", *qkv("weight")),
        *([layer("qkvb", (q + 2 * kv,), "zeros", 0.0, "qb kb vb", *qkv("bias"))] if config.qkv_bias else []),
        layer("attprojw", (C, q), "normal", residual_std, "attproj", ("self_attn.o_proj.weight", C)),
        layer("ln2w", (C,), "ones", 0.0, "ln2w", ("post_attention_layernorm.weight", C)),
        layer("gateupw", (2 * H, C), "normal", 0.02, "gate up", ("mlp.gate_proj.weight", H), ("mlp.up_proj.weight", H)),
        layer("downw", (C, H), "normal", residual_std, "down", ("mlp.down_proj.weight", C)),
        ParameterSpec("lnfw", (C,), False, "ones", per_layer=False, huggingface="model.norm.weight"),
        *([] if config.tied else [single("lm_headw", "lm_head.weight", "head")]),
    ]


class _Kept(NamedTuple):
    """Saved activations of one layer: mid [N, C]; qkv [N, (NH + 2 NKV) hs], and views of it [B, T, heads, hs]; att
    [N, NH hs], lse
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
        """Returns the saved activations of a layer; all layers share a buffer that holds one layer."""
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
        """Shifts the slot; see Decoder. Each key is rotated by the negative angle of `drop` positions: angles add
        up, so
        the key is then as if it were rotated for the new position."""
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
