"""Weights of matmuls on the device, in the types that the kernels read, and the conversion of weights from files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.runtime.array import DeviceArray, empty
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch
from llmpy.kernels.cuda.runtime.workspace import scratch
from llmpy.quant.matrix import Matrix
from llmpy.quant.types import BF16, F16, F32, PLAIN, Q8_0, BlockType

BLOCK = Q8_0.numbers
NUMBERS_AT_ONCE = 2**22  # elements that the host converts to bfloat16 at a time
CONVERTED = (16, 1024) if INTERPRETED else (4, 256)  # rows and columns of a program
KINDS = {F32: np.float32, F16: np.float16, BF16: ml_dtypes.bfloat16, Q8_0: np.int8}


@dataclass(frozen=True, eq=False)
class DeviceMatrix:
    """A weight [OC, C] on the device, of type F32, F16, BF16 or Q8_0.

    `data` [OC, C]; of Q8_0 int8 [C / 32, OC, 32] and `scales` float32 [C / 32, OC]: the
    elements that neighbouring rows have in a block lie together, so that a matmul reads whole cache lines in its order.
    """

    kind: BlockType
    shape: tuple[int, int]
    data: DeviceArray
    scales: DeviceArray | None = None

    @classmethod
    def of(cls, array: DeviceArray) -> DeviceMatrix:
        """An array [OC, C] of float32, float16 or bfloat16, where it lies."""
        return cls(PLAIN[array.dtype], (array.shape[0], array.shape[1]), array)

    @classmethod
    def new(cls, kind: BlockType, OC: int, C: int) -> DeviceMatrix:
        """A new matrix with arbitrary contents."""
        if kind == Q8_0:
            return cls(kind, (OC, C), empty(C // BLOCK, OC, BLOCK, dtype=np.int8), empty(C // BLOCK, OC))
        return cls(kind, (OC, C), empty(OC, C, dtype=KINDS[kind]))

    @staticmethod
    def bytes_of_row(kind: BlockType, C: int) -> int:
        return C + C // BLOCK * 4 if kind == Q8_0 else C * np.dtype(KINDS[kind]).itemsize

    def __getitem__(self, rows: slice) -> DeviceMatrix:
        """Some of the rows, where they lie."""
        data, scales = (self.data[rows], None) if self.scales is None else (self.data[:, rows], self.scales[:, rows])
        first, stop, _ = rows.indices(self.shape[0])
        return DeviceMatrix(self.kind, (max(0, stop - first), self.shape[1]), data, scales)

    @property
    def layout(self) -> tuple[DeviceArray, DeviceArray | None, int, int]:
        """The arguments of kernels: elements, scales, the stride of rows (or blocks), and the stride of scales."""
        return self.data, self.scales, self.data.strides[0], 0 if self.scales is None else self.scales.strides[0]

    def dequantized(self, dtype: Any = np.float32) -> DeviceArray:
        """The matrix as float32 or bfloat16 [OC, C], for matmuls of many rows: without a copy if it has that dtype.

        A copy lies in scratch and is valid until the next call.
        """
        if self.data.dtype == dtype:
            return self.data
        OC, C = self.shape
        made = scratch("dequantized", OC, C, dtype=dtype)
        rows, columns = CONVERTED
        grid = cdiv(C, columns), cdiv(OC, rows)
        launch(_dequantize, grid, made, *self.layout, OC, C, rows=rows, columns=columns, num_warps=4)
        return made


def matrix_of(array: Any) -> DeviceMatrix | Matrix:
    """An array [OC, C] of the device, or of the host, as a weight where it lies."""
    return DeviceMatrix.of(array) if isinstance(array, DeviceArray) else Matrix.of(array)


# ---- from files ----------------------------------------------------------------------------------------------------


def kind_on_device(*kinds: BlockType) -> BlockType:
    """The type on the device of a stack of matrices of these types.

    A type that kernels read stays as it is. Other types, and mixtures, become bfloat16, or float32 if one is float32.
    """
    if len(set(kinds)) == 1 and kinds[0] in KINDS:
        return kinds[0]
    return F32 if F32 in kinds else BF16


def upload(*matrices: Matrix) -> DeviceMatrix:
    """Uploads matrices of the host with rows of the same length, stacked into one matrix on the device."""
    kind, C = kind_on_device(*(matrix.kind for matrix in matrices)), matrices[0].shape[1]
    made = DeviceMatrix.new(kind, sum(matrix.shape[0] for matrix in matrices), C)
    first = 0
    for matrix in matrices:
        rows = made[first : first + matrix.shape[0]]
        first += matrix.shape[0]
        if matrix.kind != kind:
            step = max(1, NUMBERS_AT_ONCE // max(1, C))
            for start in range(0, matrix.shape[0], step):
                piece = slice(start, start + step)
                rows.data[piece] = matrix[piece].dequantize().astype(KINDS[kind])
        elif rows.scales is None:
            rows.data[...] = matrix.data.view(KINDS[kind])
        else:
            blocks = matrix.data.reshape(matrix.shape[0], -1, Q8_0.bytes).swapaxes(0, 1)
            rows.data[...] = blocks[:, :, 2:].view(np.int8)
            rows.scales[...] = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[..., 0]
    return made


# ---- kernels -------------------------------------------------------------------------------------------------------


@triton.jit
def numbers(w, scales, row, column, stride, scale_stride, inside):
    """The elements of a matrix at rows and columns that broadcast, float32; 0 where `inside` is false."""
    if scales is None:
        value = tl.load(w + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    else:
        block = column // 32
        q = tl.load(w + block * stride + row * 32 + column % 32, mask=inside, other=0).to(tl.float32)
        value = q * tl.load(scales + block * scale_stride + row, mask=inside, other=0.0)
    return value


@triton.jit
def _dequantize(made, w, scales, stride, scale_stride, OC, C, rows: tl.constexpr, columns: tl.constexpr):
    row = (tl.program_id(1) * rows + tl.arange(0, rows)).to(tl.int64)[:, None]
    column = (tl.program_id(0) * columns + tl.arange(0, columns))[None, :]
    inside = (row < OC) & (column < C)
    value = numbers(w, scales, row, column, stride, scale_stride, inside)
    tl.store(made + row * C + column, value.to(made.dtype.element_ty), mask=inside)
