"""GPT-2 in PyTorch, written for speed as an expert would: what ours is measured against, and in tests checked against.

Cut as nanoGPT is: fused attention, one product for q, k and v, fused AdamW, the vocabulary padded to a multiple of 128.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

from llmpy.bench.torch_peer.model import TorchModel
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.parameters import ParameterSpec


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


class TorchGPT2(TorchModel):
    """`padded`: the head has the rows of the padding too, which is faster; without them its loss is that of ours."""

    def __init__(self, config: GPT2Config, padded: bool = False) -> None:
        super().__init__(config)
        self.V = config.padded_vocab_size if padded else config.vocab_size
        self.wte, self.wpe = nn.Embedding(self.V, config.channels), nn.Embedding(config.context, config.channels)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.channels)
        self.initialize()

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def head_weight(self) -> torch.Tensor:
        return self.wte.weight

    def tensors(self, spec: ParameterSpec) -> list[nn.Parameter]:
        layers = range(spec.shape[0] if spec.per_layer else 1)
        return [self.get_parameter(spec.huggingface.format(layer)) for layer in layers]
