"""A weight as it is stored: the rows of a matrix in blocks of some type, in memory or in a file that is mapped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmpy.quant.types import PLAIN, BlockType, dequantize, dequantize_into


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight [OC, C] of type `kind`: `data` uint8 [OC, bytes of a row], rows one after the other.

    `mapped`: it lies in a file, and takes memory that the system can have back at any time.
    """

    kind: BlockType
    shape: tuple[int, int]
    data: np.ndarray
    mapped: bool = False

    def __post_init__(self) -> None:
        assert self.data.shape == (self.shape[0], self.kind.row_bytes(self.shape[1]))
        assert self.data.dtype == np.uint8
        assert self.data.flags.c_contiguous

    @classmethod
    def of(cls, array: np.ndarray, mapped: bool = False) -> Matrix:
        """An array [OC, C] of float32, float16 or bfloat16, as it lies."""
        return cls(PLAIN[array.dtype], array.shape, array.view(np.uint8), mapped)

    @property
    def address(self) -> int:
        return self.data.__array_interface__["data"][0]

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.data.shape[1]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def __getitem__(self, rows: slice) -> Matrix:
        """Some of the rows, where they lie."""
        data = self.data[rows]
        return Matrix(self.kind, (len(data), self.shape[1]), data, self.mapped)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """indices, any shape -> those rows, float32 [..., C]"""
        return dequantize(self.kind, self.data[indices])

    def dequantize(self) -> np.ndarray:
        """float32 [OC, C], a new array"""
        out = np.empty(self.shape, np.float32)
        dequantize_into(out, self.kind, self.data)
        return out
