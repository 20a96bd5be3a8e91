"""Weights of linear layers in bfloat16: a plain matrix, which the products read along its rows or across them."""

from __future__ import annotations

import ml_dtypes

from llmpy.kernels.cuda.runtime.array import DeviceArray


def weight_size(OC: int, C: int) -> int:
    """Returns the number of bfloat16 elements that a packed weight [OC, C] takes."""
    return OC * C


class Weight:
    """A weight [OC, C] in `numbers` (bfloat16 [weight_size(OC, C)]), which the optimizer writes (optimizer.py)."""

    def __init__(self, numbers: DeviceArray, OC: int, C: int) -> None:
        assert numbers.shape == (weight_size(OC, C),)
        assert numbers.dtype == ml_dtypes.bfloat16
        self.numbers, self.shape = numbers, (OC, C)

    @property
    def matrix(self) -> DeviceArray:
        """bfloat16 [OC, C], where it lies"""
        return self.numbers.reshape(self.shape)
