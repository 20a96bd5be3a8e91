"""The types of numbers in a GGUF file, and how each becomes float32.

A quantized type keeps a row in blocks of 32 or 256 numbers. Layouts as ggml has them (ggml-common.h, ggml-quants.c of
llama.cpp); d and m are float16, `q` the small whole numbers:

    Q8_0   d, q int8[32]                          d q
    Q4_0   d, q 4 bits[32]                        d (q - 8)
    Q4_1   d, m, q 4 bits[32]                     d q + m
    Q4_K   d, m, 8 x (s, t) 6 bits, q 4 bits[256] d s q - m t, of each eighth
    Q6_K   q 6 bits[256], s int8[16], d           d s (q - 32), of each sixteenth
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

ROWS_AT_ONCE = 2**22  # bytes: what is converted in one go


@dataclass(frozen=True)
class BlockType:
    """`numbers` of a block, the `bytes` it takes, and blocks uint8 [n, bytes] -> float32 [n, numbers]."""

    name: str
    numbers: int
    bytes: int
    to_float32: Callable[[np.ndarray], np.ndarray]

    def row_bytes(self, columns: int) -> int:
        return columns // self.numbers * self.bytes


def _plain(dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    return lambda blocks: np.ascontiguousarray(blocks).view(dtype).astype(np.float32)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """uint8 [n, k] -> its low halves, then its high halves, uint8 [n, 2k]"""
    return np.concatenate([data & 15, data >> 4], axis=1)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, 2:].view(np.int8) * _half(blocks, 0)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8)) * _half(blocks, 0)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 4:]) * _half(blocks, 0) + _half(blocks, 2)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    # Six bits each: the first four lie in one byte, the others have their upper two in the spare bits of those.
    scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=1)
    minima = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=1)
    q = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32)
    d, m = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (d[..., None] * q - m[..., None]).reshape(-1, 256)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    q = (low | high << 4).view(np.int8) - np.int8(32)
    d = blocks[:, 192:208].view(np.int8) * _half(blocks, 208)
    return (q.reshape(-1, 16, 16) * d[..., None]).reshape(-1, 256)


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4, _plain(np.dtype("<f4"))),
    1: BlockType("F16", 1, 2, _plain(np.dtype("<f2"))),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    30: BlockType("BF16", 1, 2, _plain(np.dtype(ml_dtypes.bfloat16))),
}
# Types that are not read, for the one line that says so; there are more.
OTHER_TYPES = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4"}


def dequantize(kind: BlockType, data: np.ndarray) -> np.ndarray:
    """data uint8 [..., bytes of a row], whole blocks -> float32 [..., numbers of a row]"""
    blocks = data.reshape(-1, kind.bytes)
    numbers = data.shape[-1] // kind.bytes * kind.numbers
    with np.errstate(all="ignore"):  # a damaged scale may be infinite; `llmpy info` counts what comes of it
        return kind.to_float32(blocks).reshape(*data.shape[:-1], numbers)


def dequantize_into(out: np.ndarray, kind: BlockType, data: np.ndarray) -> None:
    """The same into float32 `out` [..., numbers of a row], a few megabytes at a time."""
    if data.ndim == 1:
        out[...] = dequantize(kind, data)
        return
    step = max(1, ROWS_AT_ONCE // max(1, data[:1].nbytes))
    for start in range(0, len(data), step):
        out[start : start + step] = dequantize(kind, data[start : start + step])
