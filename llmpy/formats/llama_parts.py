"""Where the tensors of others' Llama files belong in our parameters: one list, which every reader and writer walks.

A part is a tensor as Hugging Face has it (q, k and v apart, one for each layer). Its rows are in one of two orders: the
channels that a position rotates together are neighbours (Meta, llama2.c, GGUF's "llama"), or half a head apart (Hugging
Face, GGUF's "qwen2"). What is read keeps the order of its file, which `LlamaConfig.rope_interleaved` says; what is
written is put into the other one where it must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmpy.config import LlamaConfig, ModelConfig
from llmpy.errors import UserError
from llmpy.memory import MemoryPlan
from llmpy.parameters import Parameters, llama_table, parameter_table, total_size

_ATTENTION = "model.layers.{}.self_attn."


@dataclass(frozen=True)
class Part:
    """Rows of one of our tensors under a foreign name. `shape` is its own, that of one layer."""

    name: str  # Hugging Face's, with {} for the layer
    layer: int | None
    tensor: str  # ours
    first_row: int
    shape: tuple[int, ...]
    heads: int  # for q and k, whose rows positions rotate: their heads; else 0

    @property
    def huggingface(self) -> str:
        return self.name.format(self.layer)

    def of(self, parameters: Parameters) -> np.ndarray:
        """The view of the parameters that this part is."""
        view = parameters[self.tensor]
        if self.layer is not None:
            view = view[self.layer]
        return view[self.first_row : self.first_row + self.shape[0]]

    def stored(self, parameters: Parameters, config: LlamaConfig, interleaved: bool) -> np.ndarray:
        """The same with its rows in the order of a file: a view where they are, else a copy."""
        view = self.of(parameters)
        if not self.heads or config.rope_interleaved == interleaved:
            return view
        return reorder(view, self.heads, interleaved)


def llama_parts(config: LlamaConfig) -> Iterator[Part]:
    """All parts of a model, layer by layer within each of our tensors."""
    for spec in llama_table(config):
        pieces = spec.parts or ((spec.huggingface, spec.shape[1 if spec.per_layer else 0]),)
        for layer in range(config.layers) if spec.per_layer else (None,):
            first = 0
            for name, rows in pieces:
                shape = (rows, *spec.shape[2 if spec.per_layer else 1 :])
                yield Part(name, layer, spec.name, first, shape, _rotated_heads(name, config))
                first += rows


def _rotated_heads(name: str, config: LlamaConfig) -> int:
    if name.startswith(f"{_ATTENTION}q_proj."):
        return config.heads
    return config.kv_heads if name.startswith(f"{_ATTENTION}k_proj.") else 0


def reorder(rows: np.ndarray, heads: int, interleaved: bool) -> np.ndarray:
    """Rows of q or k, [heads * hs, ...], from the one order into the other: to neighbours if `interleaved`, else to
    halves.
    """
    size = len(rows) // heads
    pairs = (heads, 2, size // 2) if interleaved else (heads, size // 2, 2)
    return np.ascontiguousarray(rows.reshape(*pairs, -1).swapaxes(1, 2)).reshape(rows.shape)


def take_parameters(config: ModelConfig) -> Parameters:
    """Memory for the parameters of a model and nothing else. UserError where the machine has less."""
    table, plan = parameter_table(config), MemoryPlan()
    plan.add("parameters", "parameters", total_size(table))
    return Parameters(table, plan.take()["parameters"])


def read_parts(config: LlamaConfig, read: Callable[[Part], np.ndarray]) -> Parameters:
    """The parameters of a model as float32, each part from `read(part)`, which gives numbers of the part's shape."""
    parameters = take_parameters(config)
    for part in llama_parts(config):
        part.of(parameters)[...] = read(part)
    return parameters


def checked_config(where: str, **sizes: Any) -> LlamaConfig:
    """The config of what a file says: all sizes but head_size must be given. UserError, beginning with `where`, for
    sizes that no model has.
    """
    for name, value in sizes.items():
        whole = name in ("vocab_size", "context", "layers", "heads", "kv_heads", "channels", "hidden", "head_size")
        if whole and not (type(value) is int and 0 < value < 2**31):
            raise UserError(f"{where}: {name} must be a whole number of 1 or more, not {value!r}")
    # LlamaConfig says which numbers would fit, and takes its time for it where a number is damaged and large.
    for larger, smaller in (("channels", "heads"), ("heads", "kv_heads")):
        if sizes[larger] % sizes[smaller] and not (larger == "channels" and "head_size" in sizes):
            raise UserError(f"{where}: {larger} {sizes[larger]} is not a multiple of {smaller} {sizes[smaller]}")
    try:
        return LlamaConfig(**sizes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
