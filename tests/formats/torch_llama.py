"""Llama in PyTorch, from its paper: the other side of the tests of its files. Nothing here uses llmpy's code."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def frequencies(c) -> Tensor:
    """Of every pair of channels, with the stretching of Llama 3.1."""
    found = []
    for i in range(0, c.head_size, 2):
        f = 1 / c.rope_theta ** (i / c.head_size)
        if (s := c.rope_scaling) is not None:
            wavelength = 2 * math.pi / f
            if wavelength > s.original_context / s.low_freq_factor:
                f /= s.factor
            elif wavelength > s.original_context / s.high_freq_factor:
                smooth = (s.original_context / wavelength - s.low_freq_factor) / (
                    s.high_freq_factor - s.low_freq_factor
                )
                f = (1 - smooth) * f / s.factor + smooth * f
        found.append(f)
    return torch.tensor(found)


def rotate(x: Tensor, c) -> Tensor:
    """x [B, heads, T, hs]"""
    angles = torch.outer(torch.arange(x.shape[2]).float(), frequencies(c))
    cos, sin = angles.cos(), angles.sin()
    if c.rope_interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def forward(parameters: dict[str, np.ndarray], c, tokens: np.ndarray) -> np.ndarray:
    """tokens [B, T] -> logits [B, T, V]; the parameters by our names."""
    p = {name: torch.from_numpy(np.array(view)) for name, view in parameters.items()}
    B, T = tokens.shape
    hs, NH, NKV = c.head_size, c.heads, c.kv_heads

    def norm(x: Tensor, w: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c.norm_eps) * w

    h = p["wte"][torch.from_numpy(tokens).long()]
    for i in range(c.layers):
        qkv = functional.linear(norm(h, p["ln1w"][i]), p["qkvw"][i], p["qkvb"][i] if c.qkv_bias else None)
        q, k, v = qkv.view(B, T, NH + 2 * NKV, hs).transpose(1, 2).split([NH, NKV, NKV], 1)
        k, v = (x.repeat_interleave(NH // NKV, 1) for x in (rotate(k, c), v))
        att = functional.scaled_dot_product_attention(rotate(q, c), k, v, is_causal=True)
        h = h + functional.linear(att.transpose(1, 2).reshape(B, T, NH * hs), p["attprojw"][i])
        gate, up = functional.linear(norm(h, p["ln2w"][i]), p["gateupw"][i]).chunk(2, -1)
        h = h + functional.linear(functional.silu(gate) * up, p["downw"][i])
    return functional.linear(norm(h, p["lnfw"]), p["wte"] if c.tied else p["lm_headw"]).numpy()
