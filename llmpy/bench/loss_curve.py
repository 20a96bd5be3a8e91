"""The same model trained by us and by PyTorch: same initial values, batches and schedule. Do the losses agree?

They cannot agree for ever. Rounding differs, and training makes a difference grow, until they are as far apart as two
runs of PyTorch whose initial values differ in the last digit. That distance is the noise to compare with. In bfloat16
they part at the first step: products and activations have three digits. What has to agree is where they end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmpy.models.config import ModelConfig
from llmpy.models.registry import new_model
from llmpy.models.transformer import Model
from llmpy.training.lr_schedule import learning_rate
from llmpy.training.optimizer import AdamW, clip_scale
from llmpy.utils.progress_bar import Bar


@dataclass(frozen=True)
class Curve:
    """A run: a model and tokens int32 [n], of which each step reads B windows of T + 1 from random places."""

    config: ModelConfig
    tokens: np.ndarray
    batch_size: int
    sequence_length: int
    steps: int
    lr: float = 1e-3
    warmup: int = 20
    clip: float = 1.0

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets, int32 [B, T], of every step: the same each time."""
        random, T = np.random.default_rng(0), self.sequence_length
        for _ in range(self.steps):
            starts = random.integers(0, len(self.tokens) - T, self.batch_size)
            windows = np.stack([self.tokens[start : start + T + 1] for start in starts]).astype(np.int32)
            yield np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    def learning_rate(self, step: int) -> float:
        return learning_rate(step, self.steps, self.lr, "cosine", self.warmup, final_fraction=0.1)

    def initial(self, precision: str = "float32") -> Model:
        """The model before the first step, ready to be trained."""
        model = new_model(self.config, "cpu", self.batch_size, self.sequence_length, precision=precision)
        return model.initialize(42)


def ours(curve: Curve, bar: Bar, precision: str = "float32") -> list[float]:
    """The loss of every step."""
    model = curve.initial(precision)
    optimizer = AdamW.of(model)
    losses = []
    for step, (x, y) in enumerate(curve.batches()):
        losses.append(float(model.loss_and_gradients(x, y)))
        scale = clip_scale(optimizer.gradient_norm(), curve.clip)
        optimizer.update(step + 1, curve.learning_rate(step), scale)
        bar.advance()
    return losses


def pytorch(curve: Curve, bar: Bar, nudge: float = 0.0, precision: str = "float32") -> list[float]:
    """The same in PyTorch, in bfloat16 by autocast around forward and loss.

    `nudge` changes each initial value by this part of it: 1e-7 is the last digit of float32.
    """
    import torch

    from llmpy.bench.torch_peer.gpt2 import TorchGPT2
    from llmpy.bench.torch_peer.llama import TorchLlama
    from llmpy.bench.torch_peer.model import TorchModel, autocast

    shape: Any = curve.config
    model: TorchModel = TorchLlama(shape) if shape.family == "llama" else TorchGPT2(shape)
    model.load(curve.initial().parameters)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + nudge)
    optimizer = model.adamw(curve.lr)
    losses = []
    for step, (x, y) in enumerate(curve.batches()):
        for group in optimizer.param_groups:
            group["lr"] = curve.learning_rate(step)
        with autocast(precision):
            loss = model(torch.from_numpy(x).long(), torch.from_numpy(y).long())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), curve.clip)
        optimizer.step()
        losses.append(loss.item())
        bar.advance()
    return losses


def smoothed(losses: Sequence[float], window: int) -> np.ndarray:
    """The mean of each `window` losses in a row, float64 [n - window + 1]."""
    return np.convolve(np.asarray(losses, np.float64), np.full(window, 1 / window), mode="valid")


def largest_difference(a: Sequence[float], b: Sequence[float], window: int) -> float:
    """Returns the largest difference between two smoothed curves."""
    return float(np.abs(smoothed(a, window) - smoothed(b, window)).max())
