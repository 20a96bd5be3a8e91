"""AdamW over the flat buffers, and gradient clipping."""

from __future__ import annotations

from itertools import groupby
from typing import Protocol

import numpy as np

from llmpy.kernels import Backend
from llmpy.models.bf16_weights import BFloat16Weights
from llmpy.models.parameters import Parameters

EPS = 1e-8


class Trainable(Protocol):
    """The part of a model that the optimizer needs; `arrays` holds the moments m and v."""

    @property
    def kernels(self) -> Backend: ...
    @property
    def parameters(self) -> Parameters: ...
    @property
    def gradients(self) -> Parameters: ...
    @property
    def arrays(self) -> dict[str, np.ndarray]: ...
    @property
    def weights(self) -> Parameters | BFloat16Weights: ...


class AdamW:
    """AdamW (Loshchilov, Hutter 2017): m and v are running means of the gradient and its square, a step m / sqrt(v).

    Weight decay applies to the matrices only, not to biases and norms, as the table of parameters says.
    m and v are flat arrays of the size of the parameters, and zero before the first step. Each step packs `weights`,
    the bfloat16 copy of a bfloat16 run, from the new parameters.
    """

    def __init__(
        self,
        kernels: Backend,
        parameters: Parameters,
        gradients: Parameters,
        m: np.ndarray,
        v: np.ndarray,
        beta1: float = 0.9,
        beta2: float = 0.95,
        weight_decay: float = 0.1,
        weights: BFloat16Weights | None = None,
    ) -> None:
        self.kernels, self.parameters, self.gradients, self.m, self.v = kernels, parameters, gradients, m, v
        self.beta1, self.beta2, self.weight_decay, self.weights = beta1, beta2, weight_decay, weights
        # Neighbours in the buffer with the same decay are one call; a matrix with a bfloat16 copy is a call of its own.
        self.groups: list[tuple[slice, bool]] = []
        copied = weights is not None
        for (decay, alone), specs in groupby(parameters.table, key=lambda spec: (spec.decay, spec.product and copied)):
            slices = [parameters.slices[spec.name] for spec in specs]
            if not alone:
                self.groups.append((slice(slices[0].start, slices[-1].stop), decay))

    @classmethod
    def of(cls, model: Trainable, beta1: float = 0.9, beta2: float = 0.95, weight_decay: float = 0.1) -> AdamW:
        """Returns the optimizer of a model, over the arrays of the model."""
        m, v, weights = model.arrays["m"], model.arrays["v"], model.weights
        copy = weights if isinstance(weights, BFloat16Weights) else None
        return cls(model.kernels, model.parameters, model.gradients, m, v, beta1, beta2, weight_decay, copy)

    def gradient_norm(self) -> float:
        """Returns the L2 norm of all gradients together."""
        return float(self.kernels.global_norm(self.gradients.flat))

    def update(self, step: int, lr: float, grad_scale: float = 1.0) -> None:
        """Updates the parameters; `step` counts from 1, and `grad_scale` scales the gradients (clipping)."""
        flat, adamw = (self.parameters.flat, self.gradients.flat, self.m, self.v), self.kernels.adamw
        for s, decay in self.groups:
            weight_decay = self.weight_decay if decay else 0.0
            p, g, m, v = (x[s] for x in flat)
            adamw(p, g, m, v, lr, self.beta1, self.beta2, EPS, weight_decay, step, grad_scale)
        if self.weights is not None:
            settings = lr, self.beta1, self.beta2, EPS, self.weight_decay, step, grad_scale
            for s, weight, rounding in self.weights.matrices(step):
                p, g, m, v = (x[s].reshape(weight.shape) for x in flat)
                adamw(p, g, m, v, *settings, weight=weight, rounding=rounding)


def clip_scale(norm: float, largest: float) -> float:
    """Returns the factor that clips gradients of this norm to `largest` (0: no clipping)."""
    return largest / norm if largest > 0 and norm > largest else 1.0
