"""The arguments of a case: random numbers on the host, the same in float64, and either on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.gpu.cases import STORED, Case, Operand, Same
from llmpy.kernels import cuda
from llmpy.kernels.cuda.decode.fused_linear import add_linear, parts_shape
from llmpy.kernels.cuda.decode.matrix import DeviceMatrix, upload
from llmpy.kernels.cuda.runtime.array import DeviceArray, empty
from llmpy.kernels.cuda.runtime.workspace import scratch
from llmpy.models.inference_weights import BLOCK_TYPES, quantize_into
from llmpy.models.precision import dtype
from llmpy.models.rope import rotations
from llmpy.quant.matrix import Matrix

POOL = 2**20  # random numbers that a large array on the device repeats
KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}


def buffers_of(case: Case, make: Callable[[tuple[int, ...], Operand], Any]) -> dict[str, Any]:
    """The arrays that the arguments of a case are, or are parts of, by name; `make` takes the shape."""
    made = {}
    for name, operand in case.operands().items():
        key, shape = operand.whole or (name, operand.shape)
        if key not in made:
            made[key] = make(shape, operand)
    return made


def bound(case: Case, buffers: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a case by name, of these buffers."""
    arguments = {}
    for name, operand in case.operands().items():
        array = buffers[name if operand.whole is None else operand.whole[0]]
        if operand.whole is not None:
            part = slice(operand.start, operand.start + operand.shape[operand.axis])
            array = array[tuple(part if axis == operand.axis else slice(None) for axis in range(len(operand.shape)))]
        arguments[name] = array
    given = {name: arguments.get(name, value) for name, value in case.arguments.items()}
    return {name: arguments[value.name] if isinstance(value, Same) else value for name, value in given.items()}


def type_of(operand: Operand, precision: str) -> np.dtype:
    if operand.kind == "int32":
        return np.dtype(np.int32)
    return np.dtype(dtype(precision) if operand.kind in ("acts", "weight") else np.float32)


# ---- on the host ---------------------------------------------------------------------------------------------------


def on_host(case: Case, precision: str, seed: int = 0) -> dict[str, Any]:
    """Random; what is to be written is NaN, so that what is not written shows."""
    random = np.random.default_rng(seed)

    def make(shape: tuple[int, ...], operand: Operand) -> Any:
        numbers = _drawn(random, shape, operand, type_of(operand, precision))
        if operand.kind not in STORED:
            return numbers
        kind = KINDS[operand.kind]
        data = np.empty((shape[0], kind.row_bytes(shape[1])), np.uint8)
        quantize_into(data, kind, numbers)
        return Matrix(kind, (shape[0], shape[1]), data)

    return buffers_of(case, make)


def _drawn(random: np.random.Generator, shape: tuple[int, ...], operand: Operand, numbers: np.dtype) -> np.ndarray:
    if operand.below:
        return random.integers(0, operand.below, shape, np.int32)
    if operand.role == "out":
        return np.full(shape, np.nan, numbers)
    values = random.standard_normal(shape, np.float32)
    values *= np.float32(operand.scale)
    if operand.positive:
        values = np.abs(values) + np.float32(0.1)
    return values.astype(numbers, copy=False)


def exact(buffers: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers in float64."""
    return {name: _exact(buffer) for name, buffer in buffers.items()}


def _exact(buffer: Any) -> np.ndarray:
    if isinstance(buffer, Matrix):
        return buffer.dequantize().astype(np.float64)
    with np.errstate(invalid="ignore"):  # of NaN in bfloat16
        return buffer if buffer.dtype == np.int32 else buffer.astype(np.float64)


def angles(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 [T, hs/2], by which attention turns the q and k of a case."""
    from llmpy.models.llama import LlamaConfig

    T, hs = case.operands()["k"].shape[1::2]
    return rotations(LlamaConfig(head_size=hs), T)


# ---- on the device -------------------------------------------------------------------------------------------------


def placed(case: Case, buffers: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a case with buffers of the host copied to the device."""
    copies = {name: upload(b) if isinstance(b, Matrix) else DeviceArray.of(b) for name, b in buffers.items()}
    return _weights(case, bound(case, copies))


def on_device(case: Case, precision: str) -> dict[str, Any]:
    """The arguments of a case on the device, for its time alone: random, and repeated where there are many."""
    pools: dict[tuple, DeviceArray] = {}

    def make(shape: tuple[int, ...], operand: Operand) -> Any:
        if operand.kind in STORED:
            return DeviceMatrix.new(KINDS[operand.kind], shape[0], shape[1])
        made = empty(shape, dtype=type_of(operand, precision))
        key = made.dtype, operand.below, operand.scale, operand.positive, min(POOL, prod(shape))
        if key not in pools:
            given = Operand(shape=(key[-1],), below=operand.below, scale=operand.scale, positive=operand.positive)
            pools[key] = DeviceArray.of(_drawn(np.random.default_rng(0), given.shape, given, made.dtype))
        repeat(made, pools[key])
        return made

    return _weights(case, bound(case, buffers_of(case, make)))


def repeat(array: DeviceArray, pool: DeviceArray) -> None:
    """The array is filled with the numbers of the pool, over and over."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, pool.size):
        piece = flat[start : start + pool.size]
        piece[...] = pool[: piece.size]


def _weights(case: Case, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with bfloat16 matrices as the weights that kernels take. A float32 run has no such copies."""
    for name, operand in case.operands().items():
        if operand.kind == "weight":
            array = arguments[name]
            if array.dtype == ml_dtypes.bfloat16:
                arguments[name] = cuda.Weight(array.reshape(-1), *operand.shape)
            elif operand.role == "out":
                arguments[name] = None
    if case.rope:
        arguments["rope"] = (*(DeviceArray.of(each) for each in angles(case)), False)
    return arguments


def add_product(y: DeviceArray, x: DeviceArray, w: DeviceMatrix, b: DeviceArray) -> None:
    """y [S, OC] += x [S, C] w^T + b, as generation does it: with the statistics of the norm after it."""
    parts = scratch("parts of a benchmark", *parts_shape(*y.shape), dtype=np.float32)
    add_linear(y, parts, x, w, b)
