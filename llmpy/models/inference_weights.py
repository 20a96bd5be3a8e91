"""Weights as they are stored: what a model generates with.

The matrices stay of the type that they have in their file, and where the format allows, in the file itself, mapped:
nothing is made float32 before a product reads it. Training has float32 `Parameters`, of which these are a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmpy.models.config import ModelConfig
from llmpy.models.parameters import Parameters
from llmpy.quant.matrix import Matrix
from llmpy.quant.types import BF16, BLOCK_TYPES, BlockType, quantize_into
from llmpy.utils.memory import MemoryPlan
from llmpy.utils.progress_bar import bar

__all__ = ["Copy", "Matrix", "StoredWeights"]

# What is a Matrix; all else is an array of float32.
MATRICES = frozenset(["embedding", "head", "q", "k", "v", "attproj", "gate", "up", "down", "qkv", "fc", "fcproj"])
_KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}
_ABSENT = ("qb", "kb", "vb")  # of most Llamas
Key = tuple[int | None, str]  # layer and name


@dataclass(frozen=True)
class Copy:
    """A matrix [OC, C] that is made when there is memory for all that are: `fill(data)` writes its blocks into uint8
    [OC, bytes of a row]."""

    kind: BlockType
    shape: tuple[int, int]
    fill: Callable[[np.ndarray], None]

    @classmethod
    def of(cls, array: np.ndarray, kind: BlockType) -> Copy:
        """An array [OC, C] of any type of floats, not yet of this kind."""
        return cls(kind, array.shape, lambda data: quantize_into(data, kind, array))


class StoredWeights:
    """A model's weights by the names of one layer each: `.layers[i].NAME`, `.NAME`.

    Matrices are q, k, v, attproj, gate, up, down of a Llama, qkv, attproj, fc, fcproj of a GPT-2, and of both
    `embedding` and `head`, which may be the same. Norms, biases and GPT-2's `wpe` [T, C] are arrays of float32 under
    the names that they have in `Parameters`; a Llama's qb, kb, vb are None where there are none.
    """

    embedding: Matrix
    head: Matrix
    lnfw: np.ndarray
    lnfb: np.ndarray  # and wpe: of a GPT-2
    wpe: np.ndarray

    def __init__(self, config: ModelConfig, tensors: Mapping[Key, Matrix | Copy | np.ndarray], what: str = "") -> None:
        """Copies are made now, in one memory, with `what` said of it beside the bar. Raises UserError where there is
        less memory than they take.
        """
        self.config = config
        self.tensors = _made(tensors, what)
        self.layers: list[Any] = [SimpleNamespace(**dict.fromkeys(_ABSENT)) for _ in range(config.layers)]
        for (layer, name), tensor in self.tensors.items():
            setattr(self if layer is None else self.layers[layer], name, tensor)
        if (None, "head") not in self.tensors:
            self.head = self.embedding

    @classmethod
    def of(
        cls, parameters: Parameters, config: ModelConfig, matrix_of: Callable[[np.ndarray], Any] = Matrix.of
    ) -> StoredWeights:
        """Views of float32 parameters: what changes there changes here. `matrix_of` makes a matrix of an array of the
        backend where they are."""
        tensors: dict[Key, Matrix | Copy | np.ndarray] = {}
        for spec, view in parameters.items():
            for piece in spec.pieces():
                for layer, whole in enumerate(view) if spec.per_layer else ((None, view),):
                    rows = whole[piece.rows]
                    tensors[layer, piece.stored] = matrix_of(rows) if piece.stored in MATRICES else rows
        return cls(config, tensors)

    def converted(self, kind: str) -> StoredWeights:
        """The same with its matrices of type F32, BF16 or Q8_0, copied where they are of another; BF16 instead of Q8_0
        where a row is no multiple of 32. Raises UserError where there is no memory for them.
        """
        target = _KINDS[kind]
        tensors: dict[Key, Matrix | Copy | np.ndarray] = dict(self.tensors)
        for key, matrix in self._matrices():
            fitting = target if matrix.shape[1] % target.numbers == 0 else BF16
            if matrix.kind != fitting:
                tensors[key] = Copy(fitting, matrix.shape, partial(_convert, matrix, fitting))
        return StoredWeights(self.config, tensors, f"converting to {kind}")

    def matrices(self) -> Iterator[Matrix]:
        """Each once, also where the head is the embedding."""
        return (matrix for _, matrix in self._matrices())

    def _matrices(self) -> Iterator[tuple[Key, Matrix]]:
        return ((key, tensor) for key, tensor in self.tensors.items() if isinstance(tensor, Matrix))

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices: a decode step reads all of them."""
        return sum(matrix.nbytes for matrix in self.matrices())

    @property
    def kinds(self) -> dict[str, int]:
        """The bytes of the matrices of each type, by its name, the most first."""
        found: dict[str, int] = {}
        for matrix in self.matrices():
            found[matrix.kind.name] = found.get(matrix.kind.name, 0) + matrix.nbytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def _convert(matrix: Matrix, kind: BlockType, data: np.ndarray) -> None:
    step = max(1, 2**20 // max(1, 4 * matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        rows = slice(start, start + step)
        quantize_into(data[rows], kind, matrix[rows].dequantize())


def _made(tensors: Mapping[Key, Matrix | Copy | np.ndarray], what: str) -> dict[Key, Matrix | np.ndarray]:
    copies = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Copy)}
    plan = MemoryPlan()
    for (layer, name), copy in copies.items():
        rows, columns = copy.shape
        plan.add("weights", f"{layer} {name}", rows, copy.kind.row_bytes(columns), dtype=np.uint8)
    arrays = plan.take("choose a smaller model") if copies else {}
    made = {key: tensor for key, tensor in tensors.items() if not isinstance(tensor, Copy)}
    with bar(what, plan.bytes, "B") as progress:
        for (layer, name), copy in copies.items():
            data = arrays[f"{layer} {name}"]
            copy.fill(data)
            made[layer, name] = Matrix(copy.kind, copy.shape, data)
            progress.advance(data.nbytes)
    return made
