"""Config parts that all families share: the base class, checks of sizes, and the scaling of RoPE."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from llmpy.errors import UserError

if TYPE_CHECKING:
    from llmpy.models.parameters import ParameterSpec


class ModelConfig:
    """The sizes of a model. Each family extends this class in its own file; models/registry.py lists the families."""

    family: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]  # every family's config is a dataclass
    vocab_size: int
    context: int
    layers: int
    heads: int
    kv_heads: int
    channels: int
    head_size: int
    tied: bool = True  # the head is the embedding
    rope_interleaved: bool = False

    @property
    def padded_vocab_size(self) -> int:
        """The rows of `wte` in memory."""
        return self.vocab_size

    def parameter_table(self) -> list[ParameterSpec]:
        """The tensors of the model, in the order of memory."""
        raise NotImplementedError

    def with_rope_interleaved(self, interleaved: bool) -> Self:
        """Returns the config with another order of the rotated channels; a model without RoPE stays as it is."""
        return self

    def reshaped(self, **sizes: int) -> Self:
        """Replaces the sizes that are given, that are not 0 and that the family has."""
        return replace(self, **{name: size for name, size in sizes.items() if size and name in vars(self)})


def check_whole_numbers(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} must be a whole number of 1 or more, not {value!r}")


def check_shared_evenly(channels: int, heads: int) -> None:
    if channels % heads:
        fits = [n for n in range(1, channels + 1) if channels % n == 0]
        nearest = sorted(sorted(fits, key=lambda n: abs(n - heads))[:3])
        raise UserError(
            f"{channels} channels cannot be shared by {heads} heads: use {', '.join(map(str, nearest))} heads"
            f" or a multiple of {heads} channels"
        )


def check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not (0 < value < math.inf):
            raise UserError(f"{name} must be a number above 0, not {value!r}")


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of RoPE to a longer context, as in Llama 3.1: frequencies whose wavelength (in positions) is above
    original_context / low_freq_factor are divided by `factor`, those below original_context / high_freq_factor stay,
    and between the two is a blend (Llama 3 herd of models, 2024; the code of `llama-models` says the numbers)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        check_whole_numbers(self, "original_context")
        check_positive(self, "factor", "low_freq_factor", "high_freq_factor")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"high_freq_factor must be above low_freq_factor, not {self.high_freq_factor} and"
                f" {self.low_freq_factor}"
            )
