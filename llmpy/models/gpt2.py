"""GPT-2 (Radford et al. 2019) and GPT-3 shapes: forward and backward, on one page, over the kernel contract.

    residual = wte[token] + wpe[position]
    for every layer:
        residual += attproj(attention(qkv(layernorm(residual))))
        residual += fcproj(gelu(fc(layernorm(residual))))
    logits = layernorm(residual) @ wte.T

What backward needs is kept by forward: the residual stream before each half of a block, qkv, the attention's output,
and the MLP's hidden layer before GELU. LayerNorm's outputs and GELU's are not kept: making them again costs a
thousandth of a step. Gradients of activations are written over the activations they belong to, so that backward needs
next to no memory of its own.

In bfloat16 the activations and their gradients are that, and the products read a bfloat16 copy of the matrices; the
parameters, their gradients, the logits and the loss are float32 as ever.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from llmpy import kernels
from llmpy.config import GPT2Config
from llmpy.errors import UserError
from llmpy.memory import MemoryPlan
from llmpy.parameters import Parameters, gpt2_table, initialize, total_size
from llmpy.precision import dtype
from llmpy.weights import BFloat16Weights, plan_weights

LOGITS_ROWS = 256  # rows of logits that exist at a time


def plan_parameters(config: GPT2Config, training: bool) -> MemoryPlan:
    """Parameters, and for training their gradients and AdamW's two moments."""
    plan, size = MemoryPlan(), total_size(gpt2_table(config))
    plan.add("parameters", "parameters", size)
    if training:
        plan.add("gradients", "gradients", size)
        plan.add("optimizer", "m", size)
        plan.add("optimizer", "v", size)
    return plan


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
    plan.add("logits", "logits", min(N, LOGITS_ROWS), config.vocab_size)


def plan_training(
    config: GPT2Config, B: int, T: int, recompute: int, precision: str = "float32", backend: str = "cpu"
) -> MemoryPlan:
    """All that training takes."""
    plan = plan_parameters(config, training=True)
    if precision == "bfloat16":
        plan_weights(plan, kernels.load(backend), gpt2_table(config))
    plan_activations(plan, config, B, T, recompute, precision)
    return plan


class _Kept(NamedTuple):
    """Of one layer: mid, att [N, C]; qkv [N, 3C], q, k, v [B, T, NH, hs] views of it; lse [B, NH, T]; fch [N, 4C]."""

    mid: np.ndarray
    qkv: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    att: np.ndarray
    lse: np.ndarray
    fch: np.ndarray


def head_of(weights: Parameters | BFloat16Weights, V: int) -> Any:
    """The embedding of tokens as the weight of a product, [V, C]."""
    return weights["wte"] if isinstance(weights, BFloat16Weights) else weights.wte[:V]


class GPT2:
    """A GPT-2 with its parameters and, where B and T are given, all that training it takes.

    `recompute` trades time for memory: 0 keeps all that costs time to make again; 1 makes the MLP's hidden layer again;
    2 keeps the residual stream alone and runs each block's forward pass a second time.

    `precision` is that of the computation, float32 or bfloat16 (then whoever changes the parameters other than through
    the optimizer calls `pack_weights`). `stochastic_rounding`, with its seed: see BFloat16Weights.
    """

    def __init__(
        self,
        config: GPT2Config,
        backend: str = "cpu",
        batch_size: int | None = None,
        sequence_length: int | None = None,
        recompute: int = 0,
        precision: str = "float32",
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self.config, self.kernels, self.precision = config, kernels.load(backend), precision
        B, T = batch_size, sequence_length or config.context
        if T > config.context:
            raise UserError(f"a sequence length of {T} is more than the model's context of {config.context}: lower it")
        if recompute not in (0, 1, 2):
            raise UserError(f"recompute is 0, 1 or 2, not {recompute}")
        self.batch_size, self.sequence_length, self.recompute = B, T, recompute
        if B is None:
            self.memory = plan_parameters(config, training=False)
        else:
            self.memory = plan_training(config, B, T, recompute, precision, backend)
        self.arrays = self.memory.take()
        table = gpt2_table(config)
        self.parameters = Parameters(table, self.arrays["parameters"])
        self.weights: Parameters | BFloat16Weights = self.parameters
        if B is not None:
            self.gradients = Parameters(table, self.arrays["gradients"])
            if precision == "bfloat16":
                self.weights = BFloat16Weights(self.kernels, self.parameters, self.arrays, stochastic_rounding, seed)

    def initialize(self, seed: int = 42) -> GPT2:
        """Initial values as GPT-2 draws them, number for number those of PyTorch for this seed."""
        initialize(self.parameters, seed)
        self.pack_weights()
        return self

    def pack_weights(self, step: int = 0) -> None:
        """After a change of the parameters: the bfloat16 copy, where there is one, as it is after so many steps."""
        if isinstance(self.weights, BFloat16Weights):
            self.weights.pack(step)

    # ---- forward and backward through one block --------------------------------------------------------------------

    def _kept(self, layer: int) -> _Kept:
        """What forward keeps of a layer; a buffer that holds one layer is shared by all of them."""
        a = self.arrays
        mid, qkv, att, lse, fch = (
            a[name][layer % len(a[name])] for name in ("residual_mid", "qkv", "att", "lse", "fch")
        )
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        return _Kept(mid, qkv.reshape(len(mid), -1), q, k, v, att, lse, fch)

    def _block_forward(self, layer: int) -> None:
        """residual[layer] -> residual[layer + 1]"""
        p, w, K, a = self.parameters.layers[layer], self.weights.layers[layer], self.kernels, self.arrays
        x, y, kept, hidden = a["residual"][layer], a["residual"][layer + 1], self._kept(layer), a["fch_gelu"]
        mid, ln, mean, rstd = kept.mid, a["ln"], a["ln_mean"], a["ln_rstd"]

        K.layernorm_forward(ln, mean, rstd, x, p.ln1w, p.ln1b)
        K.linear_forward(kept.qkv, ln, w.qkvw, p.qkvb)
        K.attention_forward(kept.att.reshape(kept.q.shape), kept.lse, kept.q, kept.k, kept.v)
        K.linear_forward(mid, kept.att, w.attprojw, p.attprojb, residual=x)

        K.layernorm_forward(ln, mean, rstd, mid, p.ln2w, p.ln2b)
        K.linear_forward(hidden, ln, w.fcw, p.fcb, pre_gelu=kept.fch)
        K.linear_forward(y, hidden, w.fcprojw, p.fcprojb, residual=mid)

    def _block_backward(self, layer: int, accumulate: bool) -> None:
        """dresidual, the gradient by residual[layer + 1], becomes the one by residual[layer]."""
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
        linear_backward(dfch, g.fcprojw, g.fcprojb, dresidual, fch, w.fcprojw, gelu=True)
        linear_backward(ln, g.fcw, g.fcb, dfch, ln, w.fcw)
        K.layernorm_backward(dresidual, g.ln2w, g.ln2b, ln, mid, p.ln2w, mean, rstd)

        datt = a["datt"]
        linear_backward(datt, g.attprojw, g.attprojb, dresidual, att, w.attprojw)
        K.attention_backward(q, k, v, datt.reshape(q.shape), q, k, v, att.reshape(q.shape), lse)
        K.layernorm_forward(ln, mean, rstd, x, p.ln1w, p.ln1b)
        linear_backward(ln, g.qkvw, g.qkvb, qkv, ln, w.qkvw)
        K.layernorm_backward(dresidual, g.ln1w, g.ln1b, ln, x, p.ln1w, mean, rstd)

    # ---- the whole model ---------------------------------------------------------------------------------------------

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        """tokens int32 [B, T] -> the normalised last residual [B*T, C], of which the head makes logits."""
        K, a, p, L = self.kernels, self.arrays, self.parameters, self.config.layers
        self._check(tokens)
        K.embedding_forward(a["residual"][0].reshape(*tokens.shape, -1), tokens, p.wte, p.wpe)
        for layer in range(L):
            self._block_forward(layer)
        K.layernorm_forward(a["ln"], a["ln_mean"], a["ln_rstd"], a["residual"][L], p.lnfw, p.lnfb)
        return a["ln"]

    def loss(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """tokens, targets int32 [B, T] -> the mean cross-entropy in nats."""
        x, losses = self.forward(tokens), self.arrays["losses"]
        self.kernels.classifier_forward(losses, x, self._head(), targets.reshape(-1), self.arrays["logits"])
        return float(losses.mean(dtype=np.float64))

    def loss_and_gradients(
        self, tokens: np.ndarray, targets: np.ndarray, micro_steps: int = 1, accumulate: bool = False
    ) -> float:
        """As `loss`, and the gradients of loss / micro_steps in `self.gradients`, written or, `accumulate`, added."""
        K, a, p, g, L = self.kernels, self.arrays, self.parameters, self.gradients, self.config.layers
        V = self.config.vocab_size
        if not accumulate:
            for spec, view in g.items():  # what linear_backward and the head do not write
                if spec.name == "wpe" or not spec.decay:
                    view.fill(0)
        x, losses, dx = self.forward(tokens), a["losses"], a["datt"]
        scale, targets = 1 / (tokens.size * micro_steps), targets.reshape(-1)
        K.classifier_backward(losses, dx, g.wte[:V], x, self._head(), targets, scale, a["logits"], accumulate)
        a["dresidual"].fill(0)
        K.layernorm_backward(a["dresidual"], g.lnfw, g.lnfb, dx, a["residual"][L], p.lnfw, a["ln_mean"], a["ln_rstd"])
        for layer in reversed(range(L)):
            self._block_backward(layer, accumulate)
        K.embedding_backward(g.wte, g.wpe, a["dresidual"].reshape(*tokens.shape, -1), tokens)
        return float(losses.mean(dtype=np.float64))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """tokens int32 [B, T] -> logits [B, T, V], a new array: for tests and evaluation of small batches."""
        x = self.forward(tokens)
        logits = np.empty((len(x), self.config.vocab_size), np.float32)
        self.kernels.linear_forward(logits, x, self._head())
        return logits.reshape(*tokens.shape, -1)

    def _head(self) -> Any:
        """The head is the token embedding (weights tied), without its padding: [V, C]."""
        return head_of(self.weights, self.config.vocab_size)

    def _check(self, tokens: np.ndarray) -> None:
        if tokens.shape != (self.batch_size, self.sequence_length):
            raise ValueError(
                f"tokens are {tokens.shape}, the model was made for {(self.batch_size, self.sequence_length)}"
            )
