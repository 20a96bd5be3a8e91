"""Llama in PyTorch, written for speed as an expert would: what ours is measured against, and in tests checked against.

Fused attention, one product for q, k and v, one for gate and up, fused AdamW, rotations from a table.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

from llmpy.bench.torch_peer.model import TorchModel
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import ParameterSpec
from llmpy.models.rope import rotations


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [B, heads, T, hs]; cos, sin [T, hs/2]."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, -1)
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


class Block(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config, C, hs = config, config.channels, config.head_size
        self.ln_1, self.ln_2 = (nn.RMSNorm(C, eps=config.norm_eps) for _ in range(2))
        self.qkv = nn.Linear(C, (config.heads + 2 * config.kv_heads) * hs, bias=config.qkv_bias)
        self.attproj = nn.Linear(config.heads * hs, C, bias=False)
        self.gateup = nn.Linear(C, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, C, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        c = self.config
        heads = self.qkv(self.ln_1(x)).unflatten(-1, (-1, c.head_size)).transpose(1, 2)
        q, k, v = heads.split([c.heads, c.kv_heads, c.kv_heads], 1)
        q, k = (rotate(part, cos, sin, c.rope_interleaved) for part in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c.heads != c.kv_heads)
        x = x + self.attproj(y.transpose(1, 2).flatten(2))
        gate, up = self.gateup(self.ln_2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class TorchLlama(TorchModel):
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.channels)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.RMSNorm(config.channels, eps=config.norm_eps)
        self.lm_head = None if config.tied else nn.Linear(config.channels, config.vocab_size, bias=False)
        for name, table in zip(("cos", "sin"), rotations(config, config.context), strict=True):
            self.register_buffer(name, torch.from_numpy(table), persistent=False)
        self.initialize()

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        T = tokens.shape[1]
        x, cos, sin = self.wte(tokens), self.cos[:T], self.sin[:T]
        for block in self.h:
            x = block(x, cos, sin)
        return self.ln_f(x)

    def head_weight(self) -> torch.Tensor:
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    def tensors(self, spec: ParameterSpec) -> list[nn.Parameter]:
        names = {"wte": "wte", "lnfw": "ln_f", "lm_headw": "lm_head", "ln1w": "h.{}.ln_1", "ln2w": "h.{}.ln_2"}
        name = names.get(spec.name, f"h.{{}}.{spec.name[:-1]}") + (".bias" if spec.name == "qkvb" else ".weight")
        return [self.get_parameter(name.format(layer)) for layer in range(spec.shape[0] if spec.per_layer else 1)]
