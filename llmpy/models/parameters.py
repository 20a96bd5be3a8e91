"""One table says what a model's parameters are; the flat buffer, its views, files and optimizer groups all follow from
it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Literal

import numpy as np

from llmpy.utils.rng import MersenneTwister

Init = Literal["normal", "zeros", "ones"]


@dataclass(frozen=True)
class ParameterSpec:
    """One row of the table. `shape` has the layers first where `per_layer`; weights are (out, in)."""

    name: str
    shape: tuple[int, ...]
    decay: bool  # does weight decay apply (2-D weights: yes; biases and norms: no)
    init: Init
    std: float = 0.0
    rows: int | None = None  # rows in use where the first axis is padded (wte); the padding stays zero
    per_layer: bool = True
    huggingface: str = ""  # its name there, with {} for the layer
    transposed: bool = False  # Hugging Face stores it (in, out)
    parts: tuple[tuple[str, int], ...] = ()  # where Hugging Face has it in pieces: (name, rows) of each, from the top
    product: bool = False  # the weight of a linear layer: a run in bfloat16 keeps a copy for its products
    stored: tuple[str, ...] = ()  # the names of its pieces in StoredWeights, where they are not its own

    @property
    def size(self) -> int:
        return prod(self.shape)

    def pieces(self) -> Iterator[Piece]:
        """Yields the pieces of the tensor as foreign files have them, from the top and without the padding."""
        rows = self.rows or self.shape[1 if self.per_layer else 0]
        names = self.stored or (self.name,)
        first = 0
        for name, (huggingface, count) in zip(names, self.parts or ((self.huggingface, rows),), strict=True):
            yield Piece(name, huggingface, slice(first, first + count))
            first += count


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor of the table that stand alone in StoredWeights and at Hugging Face: q, k and v of a Llama, or
    all that there are."""

    stored: str
    huggingface: str
    rows: slice


def total_size(table: list[ParameterSpec]) -> int:
    """Numbers in the flat buffer, padding included (what llm.c calls num_parameters)."""
    return sum(spec.size for spec in table)


class Parameters:
    """A flat float32 buffer and a view of it for every row of the table; gradients and moments have the same form.

    `p.qkvw` is the stacked tensor (L, 3C, C); `p["qkvw"]` the same; `p.layers[i].qkvw` layer i's part of it (3C, C).
    """

    def __init__(self, table: list[ParameterSpec], flat: np.ndarray) -> None:
        assert flat.shape == (total_size(table),)
        self.table, self.flat = table, flat
        self.views: dict[str, np.ndarray] = {}
        self.slices: dict[str, slice] = {}
        start = 0
        for spec in table:
            self.slices[spec.name] = slice(start, start + spec.size)
            self.views[spec.name] = flat[start : start + spec.size].reshape(spec.shape)
            start += spec.size
        stacked = [spec.name for spec in table if spec.per_layer]
        depth = len(self.views[stacked[0]]) if stacked else 0
        self.layers = [SimpleNamespace(**{name: self.views[name][i] for name in stacked}) for i in range(depth)]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.views[name]

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["views"][name]
        except KeyError:
            raise AttributeError(name) from None

    def read(self) -> Parameters:
        """Returns the parameters on the host: a copy where they lie on a device."""
        return self if isinstance(self.flat, np.ndarray) else Parameters(self.table, self.flat.numpy())

    @contextmanager
    def on_host(self) -> Iterator[Parameters]:
        """Gives the parameters on the host to read and change; a device gets the changed copy at the end."""
        copy = self.read()
        yield copy
        if copy is not self:
            self.flat[...] = copy.flat

    def items(self) -> Iterator[tuple[ParameterSpec, np.ndarray]]:
        """(row of the table, view) pairs, in order."""
        return ((spec, self.views[spec.name]) for spec in self.table)


def initialize(parameters: Parameters, seed: int = 42) -> None:
    """Draw initial values exactly as llm.c's train_gpt2.py does with PyTorch: wte, wpe, then layer by layer."""
    random = MersenneTwister(seed)
    layers = max((spec.shape[0] for spec in parameters.table if spec.per_layer), default=0)

    def draw(view: np.ndarray, spec: ParameterSpec) -> None:
        view[: spec.rows] = random.normal(view[: spec.rows].size, 0.0, spec.std).reshape(view[: spec.rows].shape)

    for spec, view in parameters.items():
        view[...] = 1.0 if spec.init == "ones" else 0.0
        if spec.init == "normal" and not spec.per_layer:
            draw(view, spec)
    for layer in range(layers):
        for spec, view in parameters.items():
            if spec.init == "normal" and spec.per_layer:
                draw(view[layer], spec)
