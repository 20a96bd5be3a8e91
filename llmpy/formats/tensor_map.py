"""The list that maps tensors of foreign files to our parameters; every reader and writer walks this list.

A part is a tensor as Hugging Face has it: that of one layer; q, k and v of a Llama apart. The rows of a Llama's q and k
are in one of two orders: the channels that a position rotates together are neighbours (Meta, llama2.c, GGUF's "llama"),
or half a head apart (Hugging Face, GGUF's "qwen2"). `LlamaConfig.rope_interleaved` says which it is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.models.config import ModelConfig
from llmpy.models.inference_weights import MATRICES, Copy, Key, StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters
from llmpy.models.transformer import plan_parameters
from llmpy.quant.matrix import Matrix
from llmpy.quant.types import F32, PLAIN
from llmpy.utils.system_memory import physical_memory

_SIZES = ("vocab_size", "context", "layers", "heads", "kv_heads", "channels", "hidden", "head_size")


@dataclass(frozen=True)
class Part:
    """Rows of one of our tensors under a foreign name. `shape` is that of the foreign tensor."""

    name: str  # Hugging Face's, with {} for the layer
    layer: int | None
    tensor: str  # ours
    rows: slice
    shape: tuple[int, ...]
    transposed: bool = False
    heads: int = 0  # of q and k of a Llama, whose rows positions rotate: the number of their heads
    stored_as: str = ""  # its name in StoredWeights

    @property
    def huggingface(self) -> str:
        return self.name.format(self.layer)

    def renamed(self, words: Mapping[str, str]) -> str:
        """Returns the name in another format: Hugging Face's, with each word of the table replaced."""
        name = self.huggingface
        for word, theirs in words.items():
            name = name.replace(word, theirs)
        return name

    def of(self, parameters: Parameters) -> np.ndarray:
        """The view of the parameters that this part is, in the foreign shape."""
        view = parameters[self.tensor]
        if self.layer is not None:
            view = view[self.layer]
        return view.T if self.transposed else view[self.rows]

    def stored(self, parameters: Parameters, config: ModelConfig, interleaved: bool) -> np.ndarray:
        """The same with its rows in the order of a file: a view where they are, else a copy."""
        return self._in_order(self.of(parameters), in_memory_interleaved(config), interleaved)

    def fill(self, parameters: Parameters, config: ModelConfig, array: np.ndarray, interleaved: bool) -> None:
        """Puts what a file holds, in the order that `interleaved` says, into its place."""
        with np.errstate(over="ignore", invalid="ignore"):  # float64 that float32 cannot hold becomes infinite
            self.of(parameters)[...] = self._in_order(array, interleaved, in_memory_interleaved(config))

    def _in_order(self, rows: np.ndarray, is_interleaved: bool, interleaved: bool) -> np.ndarray:
        return reorder(rows, self.heads, interleaved) if self.heads and is_interleaved != interleaved else rows


def parts(config: ModelConfig) -> Iterator[Part]:
    """Yields the parts of a model, layer by layer within each of our tensors."""
    for spec in config.parameter_table():
        rest = spec.shape[2:] if spec.per_layer else spec.shape[1:]
        for layer in range(config.layers) if spec.per_layer else (None,):
            for piece in spec.pieces():
                foreign = (piece.rows.stop - piece.rows.start, *rest)
                foreign = foreign[::-1] if spec.transposed else foreign
                yield Part(
                    piece.huggingface, layer, spec.name, piece.rows, foreign, spec.transposed,
                    _rotated_heads(piece.huggingface, config), piece.stored,
                )  # fmt: skip


def _rotated_heads(name: str, config: ModelConfig) -> int:
    return config.heads if ".q_proj." in name else config.kv_heads if ".k_proj." in name else 0


def in_memory_interleaved(config: ModelConfig) -> bool:
    return config.rope_interleaved


def reorder(rows: np.ndarray, heads: int, interleaved: bool) -> np.ndarray:
    """Rows of q or k, [heads * hs, ...], from the one order into the other: to neighbours if `interleaved`, else to
    halves.
    """
    size = len(rows) // heads
    pairs = (heads, 2, size // 2) if interleaved else (heads, size // 2, 2)
    return np.ascontiguousarray(rows.reshape(*pairs, -1).swapaxes(1, 2)).reshape(rows.shape)


def take_parameters(config: ModelConfig) -> Parameters:
    """Memory for the parameters of a model and nothing else. UserError where the machine has less."""
    return Parameters(config.parameter_table(), plan_parameters(config, training=False).take()["parameters"])


def read_parts(config: ModelConfig, read: Callable[[Part], np.ndarray], interleaved: bool) -> Parameters:
    """The parameters of a model as float32: each part is what `read(part)` gives, in the order of the file."""
    parameters = take_parameters(config)
    for part in parts(config):
        part.fill(parameters, config, read(part), interleaved)
    return parameters


def store_parts(where: Path, config: ModelConfig, read: Callable[[Part], np.ndarray | Matrix | Copy]) -> StoredWeights:
    """The weights of a model as they lie in a file that is mapped, its q and k in the order that the config says.

    `read(part)` gives a part, an array in the foreign shape. What cannot be used where it lies (what is transposed, of
    float64, or not aligned) is copied. Raises UserError, beginning with `where`, before that, where memory cannot hold
    what is mapped.
    """
    tensors: dict[Key, Matrix | Copy | np.ndarray] = {}
    for part in parts(config):
        tensor = read(part)
        if part.stored_as in MATRICES:
            tensor = _as_matrix(tensor.T if isinstance(tensor, np.ndarray) and part.transposed else tensor)
        elif isinstance(tensor, np.ndarray):
            with np.errstate(over="ignore", invalid="ignore"):
                tensor = tensor.astype(np.float32)
        tensors[part.layer, part.stored_as] = tensor
    mapped = sum(tensor.nbytes for tensor in tensors.values() if isinstance(tensor, Matrix) and tensor.mapped)
    memory = physical_memory()
    if memory is not None and mapped > memory:
        raise UserError(
            f"{where}: every token reads its {mapped / 1e9:.1f} GB of weights, and this machine has"
            f" {memory / 1e9:.1f} GB of memory: choose a smaller model, or one of fewer bits"
        )
    return StoredWeights(config, tensors, f"reading {where.name}")


def _as_matrix(tensor: np.ndarray | Matrix | Copy) -> Matrix | Copy:
    if isinstance(tensor, Copy):
        return tensor
    if isinstance(tensor, np.ndarray):
        if tensor.dtype not in PLAIN or not tensor.flags.c_contiguous:
            return Copy.of(tensor, PLAIN.get(tensor.dtype, F32))
        tensor = Matrix.of(tensor, mapped=True)
    if tensor.kind.numbers == 1 and tensor.address % tensor.kind.bytes:
        return Copy(tensor.kind, tensor.shape, partial(np.copyto, src=tensor.data))
    return tensor


def checked_config(where: str, **sizes: Any) -> LlamaConfig:
    """The config of what a file says: all sizes but head_size must be given. UserError, beginning with `where`, for
    sizes that no model has.
    """
    for name, value in sizes.items():
        if name in _SIZES and not (type(value) is int and 0 < value < 2**31):
            raise UserError(f"{where}: {name} must be a whole number of 1 or more, not {str(value)[:40]}")
    # LlamaConfig says which numbers would fit, and takes its time for it where a number is damaged and large.
    for larger, smaller in (("channels", "heads"), ("heads", "kv_heads")):
        if sizes[larger] % sizes[smaller] and not (larger == "channels" and "head_size" in sizes):
            raise UserError(f"{where}: {larger} {sizes[larger]} is not a multiple of {smaller} {sizes[smaller]}")
    try:
        return LlamaConfig(**sizes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
