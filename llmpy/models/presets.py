"""The named sizes ("d12", "gpt3:c768", "llama:15M") and a shape given by its sizes."""

from __future__ import annotations

import re
from typing import Any

from llmpy.errors import UserError
from llmpy.models.config import ModelConfig, RopeScaling
from llmpy.models.registry import FAMILIES, Family

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
# llama:NAME -> the fields of its config. The first four are llama2.c's models of TinyStories; 1B is Llama 3.2's, 1.1B
# is TinyLlama.
LLAMA_SIZES: dict[str, dict[str, Any]] = {
    "260K": {"vocab_size": 512, "context": 512, "layers": 5, "heads": 8, "kv_heads": 4, "channels": 64, "hidden": 172},
    "15M": {"vocab_size": 32000, "context": 256, "layers": 6, "heads": 6, "channels": 288},
    "42M": {"vocab_size": 32000, "context": 1024, "layers": 8, "heads": 8, "channels": 512},
    "110M": {"vocab_size": 32000, "context": 1024, "layers": 12, "heads": 12, "channels": 768},
    "1B": {
        "vocab_size": 128256,
        "context": 131072,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "channels": 2048,
        "hidden": 8192,
        "rope_theta": 500000.0,
        "rope_scaling": RopeScaling(factor=32.0),
        "rope_interleaved": False,
    },
    "1.1B": {
        "vocab_size": 32000,
        "context": 2048,
        "layers": 22,
        "heads": 32,
        "kv_heads": 4,
        "channels": 2048,
        "hidden": 5632,
        "rope_interleaved": False,
        "tied": False,
    },
}
LLAMA_HELP = f"llama:{{{','.join(LLAMA_SIZES)}}} (Llama by size), llama (with a shape of your own)"
SHAPE = ("layers", "heads", "kv_heads", "channels", "hidden")  # what may be given beside a descriptor
OWN_LAYERS, OWN_CHANNELS = 3, 128  # of a shape of one's own, where they are not given
OWN_HEAD_SIZES = (64, 32, 48, 40, 16, 8, 4, 2, 1)  # for a width without a number of heads: the first that divides


def is_descriptor(model: str) -> bool:
    """Is it the name of a shape (d12, gpt3:c768, llama:15M, llama), not of a model?"""
    return re.fullmatch(r"(gpt2:)?d\d+|gpt3:c\d+|llama(:[\w.]*)?", model) is not None


def family_of_descriptor(descriptor: str | None) -> Family:
    """The family that a descriptor names; None is a GPT-2 with a shape of its own."""
    name = (descriptor or "gpt2").partition(":")[0]
    return FAMILIES.get(name, FAMILIES["gpt2"])


def shape_of(
    descriptor: str | None, vocab_size: int | None = None, sequence_length: int | None = None, **sizes: int
) -> ModelConfig:
    """The shape that a descriptor names (None: a GPT-2 with a shape of its own), with the given `sizes` of SHAPE.

    The context is the sequence length where the family has relative positions, as in llama2.c, and in a shape of one's
    own. A size of 0 follows from the other sizes. Raises UserError for an unknown name and for incompatible sizes.
    """
    family = family_of_descriptor(descriptor)
    if descriptor is None or descriptor == family.name:
        return _own_shape(family, vocab_size, sequence_length or 1024, **sizes)
    context = sequence_length if family.context_is_sequence_length else None
    return from_descriptor(descriptor, vocab_size, context).reshaped(**sizes)


def _own_shape(family: Family, vocab_size: int | None, context: int, **sizes: int) -> ModelConfig:
    layers, channels = sizes.pop("layers", 0) or OWN_LAYERS, sizes.pop("channels", 0) or OWN_CHANNELS
    heads = sizes.pop("heads", 0) or channels // next(size for size in OWN_HEAD_SIZES if channels % size == 0)
    given = {"vocab_size": vocab_size} if vocab_size else {}
    own = {name: size for name, size in sizes.items() if name in family.sizes}
    shape: ModelConfig = family.config(context=context, layers=layers, heads=heads, channels=channels, **given, **own)
    return shape


def from_descriptor(descriptor: str, vocab_size: int | None = None, context: int | None = None) -> ModelConfig:
    """`d12`, `gpt2:d12`, `gpt3:c768`, `llama:15M` -> the config. Raises UserError for an unknown name."""
    given = {name: size for name, size in (("vocab_size", vocab_size), ("context", context)) if size}
    if match := re.fullmatch(r"(?:gpt2:)?d(\d+)", descriptor):
        if (depth := int(match[1])) in GPT2_DEPTHS:
            channels, heads = GPT2_DEPTHS[depth]
            return FAMILIES["gpt2"].config(**{"layers": depth, "heads": heads, "channels": channels} | given)
    elif match := re.fullmatch(r"gpt3:c(\d+)", descriptor):
        if (channels := int(match[1])) in GPT3_CHANNELS:
            layers, head_size = GPT3_CHANNELS[channels]
            sizes = {"context": 2048, "layers": layers, "heads": channels // head_size, "channels": channels}
            return FAMILIES["gpt2"].config(**sizes | given)
    elif descriptor.startswith("llama:"):
        if (size := descriptor.removeprefix("llama:")) in LLAMA_SIZES:
            return FAMILIES["llama"].config(**LLAMA_SIZES[size] | given)
        raise _no_such_model(descriptor, LLAMA_HELP)
    names = GPT2_HELP if descriptor.startswith(("d", "gpt2:", "gpt3:")) else f"{GPT2_HELP}, {LLAMA_HELP}"
    raise _no_such_model(descriptor, names)


def _no_such_model(descriptor: str, names: str) -> UserError:
    return UserError(f"no model is named {descriptor!r}: use {names}, or --layers --heads --channels")
