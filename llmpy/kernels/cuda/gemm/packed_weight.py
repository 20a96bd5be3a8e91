"""Weights of linear layers in bfloat16: plain matrices, which matmuls read along the rows or the columns."""

from __future__ import annotations

import ml_dtypes

from llmpy.kernels.cuda.runtime.array import DeviceArray


def weight_size(OC: int, C: int) -> int:
    """The number of bfloat16 elements that a weight [OC, C] takes."""
    return OC * C


class Weight:
    """A weight [OC, C] in `numbers` (bfloat16 [weight_size(OC, C)]), which the optimizer writes (optimizer.py)."""

    def __init__(self, numbers: DeviceArray, OC: int, C: int) -> None:
        assert numbers.shape == (weight_size(OC, C),)
        assert numbers.dtype == ml_dtypes.bfloat16
        self.numbers, self.shape = numbers, (OC, C)

    @property
    def matrix(self) -> DeviceArray:
        """The elements as bfloat16 [OC, C], without a copy"""
        return self.numbers.reshape(self.shape)
