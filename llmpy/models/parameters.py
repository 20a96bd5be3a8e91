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

from llmpy.models.config import GPT2Config, LlamaConfig, ModelConfig
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
        """What it is made of elsewhere, from the top; its padding is no part of that."""
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


def gpt2_table(config: GPT2Config) -> list[ParameterSpec]:
    """The 16 tensors of GPT-2 in llm.c's file order (which is also the order in memory)."""
    V, Vp, T, C, L = config.vocab_size, config.padded_vocab_size, config.context, config.channels, config.layers
    residual_std = 0.02 / (2 * L) ** 0.5  # GPT-2 scales what is added to the residual stream by the number of additions

    def weight(name: str, out: int, inp: int, huggingface: str, std: float = 0.02) -> ParameterSpec:
        return ParameterSpec(
            name, (L, out, inp), True, "normal", std, huggingface=f"h.{{}}.{huggingface}.weight", transposed=True,
            product=True, stored=(name.removesuffix("w"),),
        )  # fmt: skip

    def vector(name: str, size: int, huggingface: str, init: Literal["zeros", "ones"] = "zeros") -> ParameterSpec:
        return ParameterSpec(name, (L, size), False, init, huggingface=f"h.{{}}.{huggingface}")

    wte = ParameterSpec(
        "wte", (Vp, C), True, "normal", 0.02, rows=V, per_layer=False, huggingface="wte.weight", product=True,
        stored=("embedding",),
    )  # fmt: skip
    return [
        wte,
        ParameterSpec("wpe", (T, C), True, "normal", 0.02, per_layer=False, huggingface="wpe.weight"),
        vector("ln1w", C, "ln_1.weight", "ones"),
        vector("ln1b", C, "ln_1.bias"),
        weight("qkvw", 3 * C, C, "attn.c_attn"),
        vector("qkvb", 3 * C, "attn.c_attn.bias"),
        weight("attprojw", C, C, "attn.c_proj", residual_std),
        vector("attprojb", C, "attn.c_proj.bias"),
        vector("ln2w", C, "ln_2.weight", "ones"),
        vector("ln2b", C, "ln_2.bias"),
        weight("fcw", 4 * C, C, "mlp.c_fc"),
        vector("fcb", 4 * C, "mlp.c_fc.bias"),
        weight("fcprojw", C, 4 * C, "mlp.c_proj", residual_std),
        vector("fcprojb", C, "mlp.c_proj.bias"),
        ParameterSpec("lnfw", (C,), False, "ones", per_layer=False, huggingface="ln_f.weight"),
        ParameterSpec("lnfb", (C,), False, "zeros", per_layer=False, huggingface="ln_f.bias"),
    ]


def llama_table(config: LlamaConfig) -> list[ParameterSpec]:
    """The tensors of a Llama. `qkvw` has the rows of q, k, v one after the other; `gateupw` those of gate, then up."""
    V, C, L, H, hs = config.vocab_size, config.channels, config.layers, config.hidden, config.head_size
    q, kv = config.heads * hs, config.kv_heads * hs
    residual_std = 0.02 / (2 * L) ** 0.5

    def single(name: str, huggingface: str, stored: str) -> ParameterSpec:
        multiplied = config.tied or name != "wte"
        return ParameterSpec(
            name, (V, C), True, "normal", 0.02, per_layer=False, huggingface=huggingface, product=multiplied,
            stored=(stored,),
        )  # fmt: skip

    def layer(
        name: str, shape: tuple[int, ...], init: Init, std: float, stored: str, *parts: tuple[str, int]
    ) -> ParameterSpec:
        named = tuple((f"model.layers.{{}}.{part}", rows) for part, rows in parts)
        whole, matrix = len(named) == 1, len(shape) == 2
        return ParameterSpec(
            name, (L, *shape), matrix, init, std, huggingface=named[0][0] if whole else "", product=matrix,
            parts=() if whole else named, stored=tuple(stored.split()),
        )  # fmt: skip

    def qkv(kind: str) -> list[tuple[str, int]]:
        return [(f"self_attn.{letter}_proj.{kind}", rows) for letter, rows in (("q", q), ("k", kv), ("v", kv))]

    return [
        single("wte", "model.embed_tokens.weight", "embedding"),
        layer("ln1w", (C,), "ones", 0.0, "ln1w", ("input_layernorm.weight", C)),
        layer("qkvw", (q + 2 * kv, C), "normal", 0.02, "q k v", *qkv("weight")),
        *([layer("qkvb", (q + 2 * kv,), "zeros", 0.0, "qb kb vb", *qkv("bias"))] if config.qkv_bias else []),
        layer("attprojw", (C, q), "normal", residual_std, "attproj", ("self_attn.o_proj.weight", C)),
        layer("ln2w", (C,), "ones", 0.0, "ln2w", ("post_attention_layernorm.weight", C)),
        layer("gateupw", (2 * H, C), "normal", 0.02, "gate up", ("mlp.gate_proj.weight", H), ("mlp.up_proj.weight", H)),
        layer("downw", (C, H), "normal", residual_std, "down", ("mlp.down_proj.weight", C)),
        ParameterSpec("lnfw", (C,), False, "ones", per_layer=False, huggingface="model.norm.weight"),
        *([] if config.tied else [single("lm_headw", "lm_head.weight", "head")]),
    ]


def parameter_table(config: ModelConfig) -> list[ParameterSpec]:
    """The table of the config's family."""
    return llama_table(config) if isinstance(config, LlamaConfig) else gpt2_table(config)


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
        """These on the host: themselves, or of a device a copy."""
        return self if isinstance(self.flat, np.ndarray) else Parameters(self.table, self.flat.numpy())

    @contextmanager
    def on_host(self) -> Iterator[Parameters]:
        """These where the host can read and change them: of a device, a copy, which becomes theirs at the end."""
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
