"""The shape of a model: sizes, and the short descriptors that name the well-known ones ("d12", "gpt3:c768",
"llama:15M")."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from llmpy.errors import UserError

GPT2_VOCAB_SIZE = 50257
# depth -> (channels, heads); the ladder that llm.c trains, GPT-2's own sizes among them.
GPT2_DEPTHS = {
    6: (384, 6),
    12: (768, 12),
    24: (1024, 16),
    36: (1280, 20),
    48: (1600, 25),
    60: (1920, 30),
    72: (2880, 30),
    84: (3456, 36),
}
# channels -> (layers, head size), after table 2.1 of the GPT-3 paper (Brown et al. 2020).
GPT3_CHANNELS = {
    384: (6, 64),
    768: (12, 64),
    1024: (24, 64),
    1536: (24, 96),
    2048: (24, 128),
    2560: (32, 80),
    4096: (32, 128),
    12288: (96, 128),
}
_DEPTHS, _CHANNELS = (",".join(map(str, sizes)) for sizes in (GPT2_DEPTHS, GPT3_CHANNELS))
GPT2_HELP = f"d{{{_DEPTHS}}} (GPT-2 by depth), gpt3:c{{{_CHANNELS}}} (GPT-3 by channels)"
LLAMA_MULTIPLE = 32  # llama2.c rounds the width of the MLP up to a multiple of this


def _check_whole_numbers(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} must be a whole number of 1 or more, not {value!r}")


def _check_shared_evenly(channels: int, heads: int) -> None:
    if channels % heads:
        fits = [n for n in range(1, channels + 1) if channels % n == 0]
        nearest = sorted(sorted(fits, key=lambda n: abs(n - heads))[:3])
        raise UserError(
            f"{channels} channels cannot be shared by {heads} heads: use {', '.join(map(str, nearest))} heads"
            f" or a multiple of {heads} channels"
        )


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2 or GPT-3 model. `context` is the longest sequence it has positions for (maxT in llm.c)."""

    vocab_size: int = GPT2_VOCAB_SIZE
    context: int = 1024
    layers: int = 12
    heads: int = 12
    channels: int = 768

    def __post_init__(self) -> None:
        _check_whole_numbers(self, "vocab_size", "context", "layers", "heads", "channels")
        _check_shared_evenly(self.channels, self.heads)

    @property
    def head_size(self) -> int:
        return self.channels // self.heads

    @property
    def padded_vocab_size(self) -> int:
        """The next multiple of 128: the rows of `wte` in memory and in llm.c's files."""
        return -(-self.vocab_size // 128) * 128

    @classmethod
    def from_descriptor(
        cls, descriptor: str, vocab_size: int = GPT2_VOCAB_SIZE, context: int | None = None
    ) -> GPT2Config:
        """`d12`, `gpt2:d12`, `gpt3:c768` -> the config. Raises UserError for a name that is none of them."""
        if match := re.fullmatch(r"(?:gpt2:)?d(\d+)", descriptor):
            depth = int(match[1])
            if depth in GPT2_DEPTHS:
                channels, heads = GPT2_DEPTHS[depth]
                return cls(vocab_size, context or 1024, depth, heads, channels)
        elif match := re.fullmatch(r"gpt3:c(\d+)", descriptor):
            channels = int(match[1])
            if channels in GPT3_CHANNELS:
                layers, head_size = GPT3_CHANNELS[channels]
                return cls(vocab_size, context or 2048, layers, channels // head_size, channels)
        raise _no_such_model(descriptor, GPT2_HELP)


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 stretches the rotations to a longer context: frequencies whose wavelength (in positions) is above
    original_context / low_freq_factor are divided by `factor`, those below original_context / high_freq_factor stay,
    and between the two is a blend (Llama 3 herd of models, 2024; the code of `llama-models` says the numbers)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        _check_whole_numbers(self, "original_context")
        _check_positive(self, "factor", "low_freq_factor", "high_freq_factor")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"high_freq_factor must be above low_freq_factor, not {self.high_freq_factor} and"
                f" {self.low_freq_factor}"
            )


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not (0 < value < math.inf):
            raise UserError(f"{name} must be a number above 0, not {value!r}")


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a model of the Llama family (Llama 2 and 3, TinyLlama, SmolLM, Qwen 2): RMSNorm, rotated positions,
    SwiGLU, and `kv_heads` heads of keys and values that groups of query heads share.

    `kv_heads`, `hidden` and `head_size` left at 0 follow from the others: as many as `heads`; llama2.c's rule;
    `channels // heads`. They are never 0 in a config that exists.
    """

    vocab_size: int = 32000
    context: int = 1024
    layers: int = 12
    heads: int = 12
    kv_heads: int = 0
    channels: int = 768
    hidden: int = 0  # the width of the gate and of the up projection
    head_size: int = 0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleaved: bool = (
        True  # rotated pairs: (0, 1), (2, 3) as Meta and llama2.c; False: (i, i + hs/2) as Hugging Face
    )
    tied: bool = True  # the head is the embedding
    qkv_bias: bool = False  # Qwen 2 has one
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_whole_numbers(self, "vocab_size", "context", "layers", "heads", "channels")
        if self.head_size == 0:
            _check_shared_evenly(self.channels, self.heads)
        hidden = -(-int(2 * 4 * self.channels / 3) // LLAMA_MULTIPLE) * LLAMA_MULTIPLE
        derived = {"kv_heads": self.heads, "hidden": hidden, "head_size": self.channels // self.heads}
        for name, value in derived.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        _check_whole_numbers(self, *derived)
        _check_positive(self, "rope_theta", "norm_eps")
        if self.heads % self.kv_heads:
            fits = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise UserError(
                f"{self.heads} heads cannot share {self.kv_heads} heads of keys and values:"
                f" use {', '.join(map(str, fits))}"
            )
        if self.head_size % 2:
            raise UserError(f"the head size must be even, for positions rotate pairs of channels, not {self.head_size}")

    @property
    def padded_vocab_size(self) -> int:
        """The rows of `wte` in memory: Llama's tables have no padding."""
        return self.vocab_size

    @classmethod
    def from_descriptor(cls, descriptor: str, vocab_size: int | None = None, context: int | None = None) -> LlamaConfig:
        """`llama:15M` -> the config. Raises UserError for a name that is none of LLAMA_SIZES."""
        preset = LLAMA_SIZES.get(descriptor.removeprefix("llama:")) if descriptor.startswith("llama:") else None
        if preset is None:
            raise _no_such_model(descriptor, LLAMA_HELP)
        return replace(preset, vocab_size=vocab_size or preset.vocab_size, context=context or preset.context)


# The first four are llama2.c's models of TinyStories; 1B is Llama 3.2's, 1.1B is TinyLlama.
LLAMA_SIZES = {
    "260K": LlamaConfig(512, 512, layers=5, heads=8, kv_heads=4, channels=64, hidden=172),
    "15M": LlamaConfig(32000, 256, layers=6, heads=6, channels=288),
    "42M": LlamaConfig(32000, 1024, layers=8, heads=8, channels=512),
    "110M": LlamaConfig(32000, 1024, layers=12, heads=12, channels=768),
    "1B": replace(
        LlamaConfig(128256, 131072, layers=16, heads=32, kv_heads=8, channels=2048, hidden=8192),
        rope_theta=500000.0,
        rope_scaling=RopeScaling(factor=32.0),
        rope_interleaved=False,
    ),
    "1.1B": replace(
        LlamaConfig(32000, 2048, layers=22, heads=32, kv_heads=4, channels=2048, hidden=5632),
        rope_interleaved=False,
        tied=False,
    ),
}
ModelConfig = GPT2Config | LlamaConfig

LLAMA_HELP = f"llama:{{{','.join(LLAMA_SIZES)}}} (Llama by size), llama (with a shape of your own)"
SHAPE = ("layers", "heads", "kv_heads", "channels", "hidden")  # what may be given beside a descriptor
OWN_LAYERS, OWN_CHANNELS = 3, 128  # of a shape of one's own, where they are not given
OWN_HEAD_SIZES = (64, 32, 48, 40, 16, 8, 4, 2, 1)  # for a width without a number of heads: the first that divides


def is_descriptor(model: str) -> bool:
    """Is it the name of a shape (d12, gpt3:c768, llama:15M, llama), not of a model?"""
    return re.fullmatch(r"(gpt2:)?d\d+|gpt3:c\d+|llama(:[\w.]*)?", model) is not None


def is_llama(descriptor: str | None) -> bool:
    """Does a descriptor name a Llama?"""
    return descriptor is not None and descriptor.partition(":")[0] == "llama"


def shape_of(
    descriptor: str | None, vocab_size: int | None = None, sequence_length: int | None = None, **sizes: int
) -> ModelConfig:
    """The shape that a descriptor names (None: a GPT-2 of one's own), with the `sizes` of SHAPE that are given.

    A Llama's context is the sequence length, as in llama2.c, and so is that of a shape of one's own; 0 leaves a size
    to follow from the others. Raises UserError for a name that is none, and for sizes that do not go together.
    """
    if descriptor in (None, "llama"):
        return _own_shape(is_llama(descriptor), vocab_size, sequence_length or 1024, **sizes)
    context = sequence_length if is_llama(descriptor) else None
    return reshaped(from_descriptor(str(descriptor), vocab_size, context), **sizes)


def _own_shape(
    llama: bool, vocab_size: int | None, context: int, *, layers: int = 0, heads: int = 0, kv_heads: int = 0,
    channels: int = 0, hidden: int = 0,
) -> ModelConfig:  # fmt: skip
    layers, channels = layers or OWN_LAYERS, channels or OWN_CHANNELS
    heads = heads or channels // next(size for size in OWN_HEAD_SIZES if channels % size == 0)
    if llama:
        return LlamaConfig(vocab_size or 32000, context, layers, heads, kv_heads, channels, hidden)
    return GPT2Config(vocab_size or GPT2_VOCAB_SIZE, context, layers, heads, channels)


def reshaped(
    config: ModelConfig, *, layers: int = 0, heads: int = 0, kv_heads: int = 0, channels: int = 0, hidden: int = 0
) -> ModelConfig:
    """The config with those sizes that are not 0 in place of its own, and with all anew that follows from them."""
    new_layers, new_heads, width = layers or config.layers, heads or config.heads, channels or config.channels
    if isinstance(config, GPT2Config):
        return replace(config, layers=new_layers, heads=new_heads, channels=width)
    if heads and not kv_heads:  # as many query heads to a group as before, where that goes
        group = config.heads // config.kv_heads
        kv_heads = heads // group if heads % group == 0 else heads
    return replace(
        config,
        layers=new_layers,
        heads=new_heads,
        kv_heads=kv_heads or config.kv_heads,
        channels=width,
        hidden=hidden or (0 if channels else config.hidden),
        head_size=0 if heads or channels else config.head_size,
    )


def from_descriptor(descriptor: str, vocab_size: int | None = None, context: int | None = None) -> ModelConfig:
    """The config that a descriptor names, of either family. Raises UserError for a name that is none of them."""
    if descriptor.startswith("llama:"):
        return LlamaConfig.from_descriptor(descriptor, vocab_size, context)
    if descriptor.startswith(("d", "gpt2:", "gpt3:")):
        return GPT2Config.from_descriptor(descriptor, vocab_size or GPT2_VOCAB_SIZE, context)
    raise _no_such_model(descriptor, f"{GPT2_HELP}, {LLAMA_HELP}")


def config_from_dict(fields: dict[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict`, of either family."""
    if "kv_heads" not in fields:
        return GPT2Config(**fields)
    scaling = fields["rope_scaling"]
    return LlamaConfig(**(fields | {"rope_scaling": scaling and RopeScaling(**scaling)}))


def _no_such_model(descriptor: str, names: str) -> UserError:
    return UserError(f"no model is named {descriptor!r}: use {names}, or --layers --heads --channels")
