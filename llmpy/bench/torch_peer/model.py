"""Shared parts of the PyTorch models: the loss, copies from and to our parameters, and the optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

from llmpy.models.config import ModelConfig
from llmpy.models.parameters import Parameters, ParameterSpec


def autocast(precision: str) -> AbstractContextManager[object]:
    """Around forward and loss: products in bfloat16 where `precision` says so, float32 as it is otherwise."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor; PyTorch knows NumPy's float32, and bfloat16 by its bits alone."""
    if array.dtype == np.float32:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


class TorchModel(nn.Module):
    """A family gives `hidden`, `head_weight` and `tensors`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config: Any = config

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens int64 [B, T] -> what the head reads [B, T, C]"""
        raise NotImplementedError

    def head_weight(self) -> torch.Tensor:
        """[V, C]"""
        raise NotImplementedError

    def tensors(self, spec: ParameterSpec) -> list[nn.Parameter]:
        """Returns the PyTorch parameters of one row of our table: one tensor a layer."""
        raise NotImplementedError

    def initialize(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens int64 [B, T] -> [B, T, V]"""
        return F.linear(self.hidden(tokens), self.head_weight())

    def last_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens int64 [B, T] -> [B, V], of the last of them alone."""
        return F.linear(self.hidden(tokens)[:, -1], self.head_weight())

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """tokens, targets int64 [B, T] -> the mean cross-entropy."""
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())

    def load(self, parameters: Parameters) -> Self:
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
        table = self.config.parameter_table()
        groups = [
            {
                "params": [tensor for spec in table if spec.decay == decay for tensor in self.tensors(spec)],
                "weight_decay": weight_decay if decay else 0.0,
            }
            for decay in (True, False)
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=fused)
