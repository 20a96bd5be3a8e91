"""The families of models: one entry each makes a family known to training, generation and the file formats.

This module imports nothing heavy: a family's own file is imported when one of its classes is first used.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from llmpy.models.config import ModelConfig, RopeScaling

if TYPE_CHECKING:
    from llmpy.models.decoder import Decoder
    from llmpy.models.inference_weights import StoredWeights
    from llmpy.models.transformer import Model
    from llmpy.utils.memory import MemoryPlan


@dataclass(frozen=True)
class Family:
    """A family: its file is llmpy/models/NAME.py, its classes there are CLASSES, CLASSESConfig and CLASSESDecoder."""

    name: str
    classes: str
    title: str  # for messages
    file_format: str  # the format that `convert` writes by default, beside Hugging Face's
    batches: str  # how training cuts its batches by default: a stream of tokens, or windows at random
    tokenizer: str  # the kind of tokenizer that is trained where none is given
    sizes: tuple[str, ...] = ()  # sizes that this family alone has, and that may be given on the command line
    context_is_sequence_length: bool = False  # as in llama2.c

    def _class(self, suffix: str = "") -> Any:
        return getattr(importlib.import_module(f"llmpy.models.{self.name}"), self.classes + suffix)

    @property
    def config(self) -> Any:
        """The class of the family's config."""
        return self._class("Config")

    @property
    def model(self) -> Any:
        """The class that trains."""
        return self._class()

    @property
    def decoder(self) -> Any:
        """The class that generates."""
        return self._class("Decoder")


FAMILIES = {
    family.name: family
    for family in (
        Family("gpt2", "GPT2", "GPT-2", "llmc", "stream", "bpe"),
        Family(
            "llama", "Llama", "Llama", "llama2c", "windows", "sentencepiece",
            sizes=("kv_heads", "hidden"), context_is_sequence_length=True,
        ),
    )
}  # fmt: skip


def family_of(config: ModelConfig) -> Family:
    """The family of a config."""
    return FAMILIES[config.family]


def config_from_dict(saved: dict[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict`: the family is the first that has all the fields."""
    family = next(f for f in FAMILIES.values() if saved.keys() <= {field.name for field in fields(f.config)})
    if scaling := saved.get("rope_scaling"):
        saved = saved | {"rope_scaling": RopeScaling(**scaling)}
    config: ModelConfig = family.config(**saved)
    return config


def new_model(
    config: ModelConfig,
    backend: str = "cpu",
    batch_size: int | None = None,
    sequence_length: int | None = None,
    recompute: int = 0,
    precision: str = "float32",
    stochastic_rounding: bool = False,
    seed: int = 0,
    dropout: float = 0.0,
) -> Model:
    """Returns a model of the config's family without initial values; the arguments are those of Transformer."""
    arguments = (backend, batch_size, sequence_length, recompute, precision, stochastic_rounding, seed, dropout)
    model: Model = family_of(config).model(config, *arguments)
    return model


def new_decoder(
    weights: StoredWeights,
    backend: str = "cpu",
    sequences: int = 1,
    context: int | None = None,
    precision: str = "float32",
) -> Decoder:
    """Returns the decoder that generates `sequences` texts at a time with these weights; see Decoder."""
    made: Decoder = family_of(weights.config).decoder(weights, backend, sequences, context, precision)
    return made


def plan_training(
    config: ModelConfig, B: int, T: int, recompute: int, precision: str = "float32", backend: str = "cpu"
) -> MemoryPlan:
    """Plans the memory that training on B sequences of T tokens takes."""
    plan: MemoryPlan = family_of(config).model.plan_training(config, B, T, recompute, precision, backend)
    return plan
