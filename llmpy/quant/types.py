"""The storage types of weights (F32 to Q6_K), and how each is dequantized to float32.

A quantized type keeps a row in blocks of 32 or 256 numbers. Layouts as ggml has them (ggml-common.h, ggml-quants.c of
llama.cpp); d and m are float16, `q` the small whole numbers:

    Q8_0   d, q int8[32]                          d q
    Q4_0   d, q 4 bits[32]                        d (q - 8)
    Q4_1   d, m, q 4 bits[32]                     d q + m
    Q4_K   d, m, 8 x (s, t) 6 bits, q 4 bits[256] d s q - m t, of each eighth
    Q6_K   q 6 bits[256], s int8[16], d           d s (q - 32), of each sixteenth
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

BYTES_AT_ONCE = 2**20  # converted in one go, so that what is made on the way stays in the cache


@dataclass(frozen=True)
class BlockType:
    """`numbers` of a block, the `bytes` it takes, and how blocks uint8 [n, bytes] become float32 [n, numbers].

    `code` is GGUF's number of the type. `from_float32` is the way back, of the types that we write.
    """

    name: str
    code: int
    numbers: int
    bytes: int
    to_float32: Callable[[np.ndarray], np.ndarray]
    from_float32: Callable[[np.ndarray], np.ndarray] | None = None

    def row_bytes(self, columns: int) -> int:
        return columns // self.numbers * self.bytes


def _plain(dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    return lambda blocks: np.ascontiguousarray(blocks).view(dtype).astype(np.float32)


def _rounded(dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    return lambda numbers: numbers.astype(dtype).view(np.uint8)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """uint8 [n, k] -> its low halves, then its high halves, uint8 [n, 2k]"""
    return np.concatenate([data & 15, data >> 4], axis=1)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, 2:].view(np.int8) * _half(blocks, 0)


def _to_q8_0(numbers: np.ndarray) -> np.ndarray:
    """d = max |x| / 127 in float16, q = x / d to the nearest, ties to even. What is not finite makes its block NaN."""
    blocks = np.empty((len(numbers), 34), np.uint8)
    exact = np.abs(numbers).max(-1, keepdims=True) / np.float32(127)
    np.minimum(exact, np.finfo(np.float16).max, out=exact, where=np.isfinite(exact))
    d = exact.astype("<f2")
    divisor = d.astype(np.float32)
    divisor[divisor == 0] = 1
    q = numbers * (1 / divisor)
    np.rint(q, out=q)
    np.clip(q, -127, 127, out=q)  # of the tiniest, where float16 is coarse, and the largest
    blocks[:, :2] = d.view(np.uint8)
    blocks[:, 2:].view(np.int8)[...] = q
    return blocks


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


_F32, _F16, _BF16 = np.dtype("<f4"), np.dtype("<f2"), np.dtype(ml_dtypes.bfloat16)
F32 = BlockType("F32", 0, 1, 4, _plain(_F32), _rounded(_F32))
F16 = BlockType("F16", 1, 1, 2, _plain(_F16), _rounded(_F16))
Q4_0 = BlockType("Q4_0", 2, 32, 18, _q4_0)
Q4_1 = BlockType("Q4_1", 3, 32, 20, _q4_1)
Q8_0 = BlockType("Q8_0", 8, 32, 34, _q8_0, _to_q8_0)
Q4_K = BlockType("Q4_K", 12, 256, 144, _q4_k)
Q6_K = BlockType("Q6_K", 14, 256, 210, _q6_k)
BF16 = BlockType("BF16", 30, 1, 2, _plain(_BF16), _rounded(_BF16))
BLOCK_TYPES = {kind.code: kind for kind in (F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, BF16)}
PLAIN = {_F32: F32, _F16: F16, _BF16: BF16}  # by the type of an array
# Types that are not read, for the one line that says so; there are more.
OTHER_TYPES = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4"}


def dequantize(kind: BlockType, data: np.ndarray) -> np.ndarray:
    """data uint8 [..., bytes of a row], whole blocks -> float32 [..., numbers of a row]"""
    numbers = data.shape[-1] // kind.bytes * kind.numbers
    with np.errstate(all="ignore"):  # a damaged scale may be infinite; `llmpy info` counts what comes of it
        return kind.to_float32(data.reshape(-1, kind.bytes)).reshape(*data.shape[:-1], numbers)


def dequantize_into(out: np.ndarray, kind: BlockType, data: np.ndarray) -> None:
    """The same into float32 `out` [..., numbers of a row], a megabyte at a time."""
    if data.ndim == 1:
        out[...] = dequantize(kind, data)
        return
    for rows in _pieces(data):
        out[rows] = dequantize(kind, data[rows])


def quantize_into(out: np.ndarray, kind: BlockType, numbers: np.ndarray) -> None:
    """float32 numbers [rows, columns] -> `out` uint8 [rows, bytes of a row], of a type that has `from_float32`."""
    assert kind.from_float32 is not None, f"{kind.name} is read alone"
    with np.errstate(all="ignore"):
        for rows in _pieces(numbers):
            piece = np.ascontiguousarray(numbers[rows], np.float32)
            out[rows] = kind.from_float32(piece.reshape(-1, kind.numbers)).reshape(out[rows].shape)


def _pieces(array: np.ndarray) -> Iterator[slice]:
    """Slices of the rows, a megabyte at a time."""
    step = max(1, BYTES_AT_ONCE // max(1, array[:1].nbytes))
    return (slice(start, start + step) for start in range(0, len(array), step))
