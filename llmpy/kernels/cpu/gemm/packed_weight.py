"""Weights of linear layers in bfloat16, packed once for all the products of an optimizer step.

A weight [OC, C] is read two ways: rows along its C columns by y = x w^T, and columns along its OC rows by dx = dy w. So
it is kept twice, in panels as the tiles read them. Where bfloat16 is made float32 on the way into the panels, it is
kept once, as a plain matrix.
"""

from __future__ import annotations

from collections import namedtuple

import ml_dtypes
import numpy as np

from llmpy.kernels.cpu.gemm.microkernels import BFLOAT16 as P
from llmpy.quant.matrix import Matrix
from llmpy.quant.types import BF16, F32

PACKED = P.item == 2  # in panels, and not a plain matrix

Operand = namedtuple("Operand", "address stride along wide packed blocks")
"""An operand where it lies: rows `stride` numbers apart; `along`: the depth runs along memory, not across it; `wide`:
float32, not bfloat16. Or `packed`: its panels, each `stride` deep. Or in `blocks` of the type with this code (0: in
none), rows `stride` bytes apart."""


def _padded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def weight_size(OC: int, C: int) -> int:
    """Returns the number of bfloat16 elements that a packed weight [OC, C] takes."""
    if not PACKED:
        return OC * C
    return _padded(OC, P.NR) * P.padded(C) + _padded(C, P.NR) * P.padded(OC)


class Weight:
    """A weight [OC, C] in `numbers` (bfloat16 [weight_size(OC, C)]), which the optimizer writes (optimizer.py)."""

    def __init__(self, numbers: np.ndarray, OC: int, C: int) -> None:
        assert numbers.shape == (weight_size(OC, C),)
        assert numbers.dtype == ml_dtypes.bfloat16
        self.numbers, self.shape = numbers, (OC, C)
        if PACKED:
            half = _padded(OC, P.NR) * P.padded(C)
            self.rows, self.columns = numbers[:half], numbers[half:]

    @property
    def addresses(self) -> tuple[int, int]:
        """Addresses of the two halves; of the plain matrix and 0 where the weight is not packed."""
        return (_address(self.rows), _address(self.columns)) if PACKED else (_address(self.numbers), 0)

    def operand(self, along: bool) -> Operand:
        """Returns the weight as the GEMM's operand B: of y = x w^T (`along` its columns), or of dx = dy w."""
        OC, C = self.shape
        if not PACKED:
            return Operand(_address(self.numbers), C, along, False, False, 0)
        address, depth = (_address(self.rows), C) if along else (_address(self.columns), OC)
        return Operand(address, P.padded(depth), along, False, True, 0)


def operand_of(matrix: Matrix) -> Operand:
    """A matrix [OC, C] for the GEMM, as B of y = x w^T."""
    if matrix.kind in (F32, BF16):
        return Operand(matrix.address, matrix.shape[1], True, matrix.kind == F32, False, 0)
    return Operand(matrix.address, matrix.row_bytes, True, True, False, matrix.kind.code)


class _Floats:
    """Memory that NumPy reads as an array."""

    def __init__(self, matrix: Matrix) -> None:
        where = {"data": (matrix.address, False), "shape": matrix.shape, "typestr": "<f4", "version": 3}
        self.__array_interface__ = where


def floats_of(matrix: Matrix) -> np.ndarray:
    """A matrix of float32 as an array that kernels take: they are compiled for arrays that can be written to, and a
    mapped file cannot."""
    return np.asarray(_Floats(matrix))


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
