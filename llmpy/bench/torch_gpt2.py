"""GPT-2 in PyTorch, written for speed as an expert would: what ours is measured against, and in tests checked against.

Cut as nanoGPT is: fused attention, one product for q, k and v, fused AdamW, the vocabulary padded to a multiple of 128.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

from llmpy.config import GPT2Config
from llmpy.parameters import Parameters, ParameterSpec, gpt2_table


def autocast(precision: str) -> AbstractContextManager[object]:
    """Around forward and loss: products in bfloat16 where `precision` says so, float32 as it is otherwise."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor; PyTorch knows NumPy's float32, and bfloat16 by its bits alone."""
    if array.dtype == np.float32:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


class Attention(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = nn.Linear(config.channels, 3 * config.channels)
        self.c_proj = nn.Linear(config.channels, config.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.channels, 4 * config.channels)
        self.c_proj = nn.Linear(4 * config.channels, config.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.channels), Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.channels), MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT2(nn.Module):
    """`padded`: the head has the rows of the padding too, which is faster; without them its loss is that of ours."""

    def __init__(self, config: GPT2Config, padded: bool = False) -> None:
        super().__init__()
        self.config, self.V = config, config.padded_vocab_size if padded else config.vocab_size
        self.wte, self.wpe = nn.Embedding(self.V, config.channels), nn.Embedding(config.context, config.channels)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.channels)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens int64 [B, T] -> [B, T, V]"""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """tokens, targets int64 [B, T] -> the mean cross-entropy."""
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())

    def tensors(self, spec: ParameterSpec) -> list[nn.Parameter]:
        """What a row of our table is here: one tensor for every layer."""
        layers = range(spec.shape[0] if spec.per_layer else 1)
        return [self.get_parameter(spec.huggingface.format(layer)) for layer in layers]

    def load(self, parameters: Parameters) -> TorchGPT2:
        """Take the values of our parameters."""
        with torch.no_grad():
            for spec, view in parameters.items():
                stacked = view if spec.per_layer else view[None]
                for tensor, values in zip(self.tensors(spec), stacked, strict=True):
                    tensor.copy_(torch.from_numpy(values[: len(tensor)].copy()))
        return self

    def stacked(self, spec: ParameterSpec, gradients: bool = False) -> np.ndarray:
        """The values, or gradients, of a row of our table, in its shape but for the padding of wte."""
        tensors = [tensor.grad if gradients else tensor.detach() for tensor in self.tensors(spec)]
        arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
        return np.stack(arrays) if spec.per_layer else arrays[0]

    def adamw(
        self, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1, fused: bool = True
    ) -> torch.optim.AdamW:
        """The optimizer, with the weight decay that our table gives each tensor."""
        groups = [
            {
                "params": [t for spec in gpt2_table(self.config) if spec.decay == decay for t in self.tensors(spec)],
                "weight_decay": weight_decay if decay else 0.0,
            }
            for decay in (True, False)
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=fused)
