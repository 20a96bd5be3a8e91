"""The parameters as a model's products read them: themselves in float32, or a copy of the matrices in bfloat16.

The float32 parameters stay what is trained, saved and loaded. The copy is made from them by the optimizer, step by
step, and by `pack` after they have changed in any other way.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from llmpy.kernels import Backend
from llmpy.models.parameters import Parameters, ParameterSpec
from llmpy.utils.memory import MemoryPlan

_NAME = "weights"  # of the array in a memory plan


def plan_weights(plan: MemoryPlan, kernels: Backend, table: list[ParameterSpec]) -> None:
    """Add the memory of the bfloat16 copy."""
    total = sum(kernels.weight_size(*shape) for spec in table for shape in _shapes(spec))
    plan.add("bfloat16 weights", _NAME, total, dtype=ml_dtypes.bfloat16)


def _shapes(spec: ParameterSpec) -> list[tuple[int, int]]:
    """(OC, C) of every matrix of a row of the table that a product reads; a stacked one has a matrix for each layer."""
    if not spec.product:
        return []
    OC, C = spec.shape[-2:]
    return [(spec.rows or OC, C)] * (spec.shape[0] if spec.per_layer else 1)


class BFloat16Weights:
    """The bfloat16 copy of every matrix that a matmul reads, each a `Weight` of the backend: `.layers[i].qkvw`,
    `["wte"]`.

    `stochastic`: round each number up or down at random, so that the mean is right, instead of to the nearest: then
    changes too small for bfloat16 still move the weights now and then. Which way depends on `seed` and the step alone.
    """

    def __init__(
        self,
        kernels: Backend,
        parameters: Parameters,
        arrays: dict[str, np.ndarray],
        stochastic: bool = False,
        seed: int = 0,
    ) -> None:
        self.kernels, self.parameters, self.stochastic, self.seed = kernels, parameters, stochastic, seed
        self.layers = [SimpleNamespace() for _ in parameters.layers]
        self._single: dict[str, Any] = {}
        self._matrices: list[tuple[slice, Any]] = []  # where the float32 matrix lies in the flat buffer, and its copy
        start = 0
        for spec in parameters.table:
            first = parameters.slices[spec.name].start
            for layer, shape in enumerate(_shapes(spec)):
                size, count = kernels.weight_size(*shape), shape[0] * shape[1]
                weight = kernels.Weight(arrays[_NAME][start : start + size], *shape)
                if spec.per_layer:
                    setattr(self.layers[layer], spec.name, weight)
                else:
                    self._single[spec.name] = weight
                self._matrices.append((slice(first + layer * count, first + (layer + 1) * count), weight))
                start += size

    @classmethod
    def of(cls, kernels: Backend, parameters: Parameters) -> BFloat16Weights:
        """A copy of the parameters in memory of its own."""
        plan = MemoryPlan()
        plan_weights(plan, kernels, parameters.table)
        weights = cls(kernels, parameters, plan.take())
        weights.pack()
        return weights

    def __getitem__(self, name: str) -> Any:
        return self._single[name]

    def matrices(self, step: int) -> Iterator[tuple[slice, Any, int]]:
        """Every matrix: its place in the flat buffer, its `Weight`, and how it is rounded at this step."""
        for number, (place, weight) in enumerate(self._matrices):
            key = f"{self.seed} {step} {number}".encode()
            yield place, weight, (zlib.crc32(key) or 1) if self.stochastic and step > 0 else 0

    def pack(self, step: int = 0) -> None:
        """Make the copy anew, as it was after so many steps of the optimizer."""
        for place, weight, rounding in self.matrices(step):
            self.kernels.pack_weight(weight, self.parameters.flat[place].reshape(weight.shape), rounding)
