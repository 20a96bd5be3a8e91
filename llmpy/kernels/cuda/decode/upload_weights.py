"""A model's weights on the device: weights of a file are copied once, weights of a model in training stay in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpy.errors import UserError
from llmpy.kernels.cuda.decode.matrix import DeviceMatrix, kind_on_device, upload
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.limits import headroom
from llmpy.quant.matrix import Matrix
from llmpy.quant.types import BlockType
from llmpy.utils.progress_bar import bar

if TYPE_CHECKING:
    from llmpy.models.inference_weights import StoredWeights

# Weights of a Llama that decoding reads as one matrix. The parts keep their names, as rows of the stack.
STACKED = {"qkv": ("q", "k", "v"), "gateup": ("gate", "up"), "qkvb": ("qb", "kb", "vb")}
Group = tuple[int | None, str, Sequence[Any]]  # layer, name, and the parts


def upload_weights(weights: StoredWeights) -> Any:
    """The same weights as `DeviceMatrix` and `DeviceArray`; a Llama's layers get `qkv`, `gateup` and `qkvb` besides.

    What is on the device already stays where it is. Raises UserError, before anything is copied, where the device has
    less memory than they take.
    """
    held: Any = weights.tensors.get((0, "qkv"))
    if isinstance(held, DeviceMatrix):
        return weights
    groups = list(_groups(weights))
    total = sum(_bytes(parts) for _, _, parts in groups)
    if total > (free := headroom()):
        raise UserError(
            f"the weights take {total / 1e9:.1f} GB and the GPU has {free / 1e9:.1f} GB free: choose --precision q8 or "
            "a smaller model"
        )
    tensors: dict[tuple[int | None, str], Any] = {}
    with bar("copying the weights to the GPU", total, "B") as progress:
        for layer, name, parts in groups:
            whole = _placed(parts)
            tensors[layer, name] = whole
            first = 0
            for part_name, part in zip(STACKED[name], parts, strict=True) if len(parts) > 1 else ():
                tensors[layer, part_name] = whole[first : first + part.shape[0]]
                first += part.shape[0]
            progress.advance(_bytes(parts))
    if (0, "qkvb") not in tensors:
        tensors |= {(layer, "qkvb"): None for layer in range(weights.config.layers)}
    return type(weights)(weights.config, tensors)


def _groups(weights: StoredWeights):
    """Yields every weight once; weights that are stacked come together."""
    stacked = {part: (name, parts) for name, parts in STACKED.items() for part in parts}
    for (layer, name), tensor in weights.tensors.items():
        if name not in stacked:
            yield layer, name, [tensor]
        elif name == stacked[name][1][0]:
            whole, parts = stacked[name]
            yield layer, whole, [weights.tensors[layer, part] for part in parts]


def _bytes(parts: Sequence[Any]) -> int:
    """Bytes that these parts need on the device, beyond those that are there already."""
    if isinstance(parts[0], (DeviceMatrix, DeviceArray)):
        return 0
    if isinstance(parts[0], np.ndarray):
        return sum(part.nbytes for part in parts)
    kind: BlockType = kind_on_device(*(part.kind for part in parts))
    return sum(part.shape[0] * DeviceMatrix.bytes_of_row(kind, part.shape[1]) for part in parts)


def _placed(parts: Sequence[Any]) -> DeviceMatrix | DeviceArray:
    first = parts[0]
    if isinstance(first, Matrix):
        return upload(*parts)
    if isinstance(first, np.ndarray):
        return DeviceArray.of(np.concatenate(parts) if len(parts) > 1 else np.ascontiguousarray(first))
    if len(parts) == 1:
        return first
    arrays = [part.data if isinstance(part, DeviceMatrix) else part for part in parts]
    end = arrays[0].address
    for array in arrays:
        assert array.address == end, "weights of the device that are read as one must lie together"
        assert array.is_contiguous
        end += array.nbytes
    rows = sum(len(array) for array in arrays)
    whole = DeviceArray(arrays[0].address, (rows, *arrays[0].shape[1:]), arrays[0].dtype, arrays[0].owner)
    return DeviceMatrix.of(whole) if isinstance(first, DeviceMatrix) else whole
