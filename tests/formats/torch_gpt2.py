"""GPT-2 in PyTorch, and llm.c's files written and read from there: the other side of the tests of these files.

Nothing here uses llmpy, so that a mistake cannot be made twice in the same way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    V: int
    T: int  # the longest context
    L: int
    NH: int
    C: int

    @property
    def padded(self) -> int:
        return (self.V + 127) // 128 * 128

    def shapes(self) -> dict[str, tuple[int, ...]]:
        L, C = self.L, self.C
        return {
            "wte": (self.padded, C),
            "wpe": (self.T, C),
            "ln1w": (L, C),
            "ln1b": (L, C),
            "qkvw": (L, 3 * C, C),
            "qkvb": (L, 3 * C),
            "attprojw": (L, C, C),
            "attprojb": (L, C),
            "ln2w": (L, C),
            "ln2b": (L, C),
            "fcw": (L, 4 * C, C),
            "fcb": (L, 4 * C),
            "fcprojw": (L, C, 4 * C),
            "fcprojb": (L, C),
            "lnfw": (C,),
            "lnfb": (C,),
        }


def random_parameters(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: torch.randn(shape, generator=generator) * 0.2 + (1.0 if name in ("ln1w", "ln2w", "lnfw") else 0.0)
        for name, shape in sizes.shapes().items()
    }
    parameters["wte"][sizes.V :] = 0
    return parameters


def forward(p: dict[str, Tensor], sizes: Sizes, x: Tensor) -> Tensor:
    """x int64 [B, T] -> logits [B, T, V]"""
    B, T = x.shape
    C, NH = sizes.C, sizes.NH
    h = p["wte"][x] + p["wpe"][:T]
    for i in range(sizes.L):
        normed = functional.layer_norm(h, (C,), p["ln1w"][i], p["ln1b"][i])
        q, k, v = (
            part.view(B, T, NH, C // NH).transpose(1, 2)
            for part in functional.linear(normed, p["qkvw"][i], p["qkvb"][i]).split(C, dim=2)
        )
        att = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        h = h + functional.linear(att, p["attprojw"][i], p["attprojb"][i])
        normed = functional.layer_norm(h, (C,), p["ln2w"][i], p["ln2b"][i])
        hidden = functional.gelu(functional.linear(normed, p["fcw"][i], p["fcb"][i]), approximate="tanh")
        h = h + functional.linear(hidden, p["fcprojw"][i], p["fcprojb"][i])
    return functional.linear(functional.layer_norm(h, (C,), p["lnfw"], p["lnfb"]), p["wte"][: sizes.V])


def header(*values: int) -> bytes:
    return struct.pack("<256i", *values, *[0] * (256 - len(values)))


def raw(tensor: Tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def write_model(path: Path, p: dict[str, Tensor], sizes: Sizes, dtype: torch.dtype = torch.float32) -> None:
    version = {torch.float32: 3, torch.bfloat16: 5}[dtype]
    with open(path, "wb") as file:
        file.write(header(20240326, version, sizes.T, sizes.V, sizes.L, sizes.NH, sizes.C, sizes.padded))
        for name in sizes.shapes():
            file.write(raw(p[name].to(dtype)))


def write_debug_state(path: Path, p: dict[str, Tensor], sizes: Sizes, x: Tensor, y: Tensor) -> None:
    p = {name: tensor.clone().requires_grad_() for name, tensor in p.items()}
    logits = forward(p, sizes, x)
    loss = functional.cross_entropy(logits.view(-1, sizes.V), y.view(-1))
    loss.backward()
    with open(path, "wb") as file:
        file.write(header(20240327, 2, *x.shape))
        for tokens in (x, y):
            file.write(raw(tokens.to(torch.int32)))
        file.write(raw(logits) + raw(loss))
        for name in sizes.shapes():
            file.write(raw(p[name].grad))


def read_debug_state(path: Path, sizes: Sizes) -> dict[str, np.ndarray]:
    """x, y, logits, loss, and the gradients by the names of the tensors."""
    data = path.read_bytes()
    magic, version, B, T = struct.unpack_from("<4i", data)
    assert (magic, version) == (20240327, 2)
    pieces = {"x": (B, T), "y": (B, T), "logits": (B, T, sizes.V), "loss": (1,)} | sizes.shapes()
    found, at = {}, 1024
    for name, shape in pieces.items():
        count = int(np.prod(shape))
        found[name] = np.frombuffer(data, "<i4" if name in "xy" else "<f4", count, at).reshape(shape)
        at += 4 * count
    assert at == len(data)
    return found
