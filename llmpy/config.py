"""The shape of a model: sizes, and the short descriptors that name the well-known ones ("d12", "gpt3:c768")."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
DESCRIPTORS_HELP = f"d{{{_DEPTHS}}} (GPT-2 by depth) or gpt3:c{{{_CHANNELS}}} (GPT-3 by channels)"


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2 or GPT-3 model. `context` is the longest sequence it has positions for (maxT in llm.c)."""

    vocab_size: int = GPT2_VOCAB_SIZE
    context: int = 1024
    layers: int = 12
    heads: int = 12
    channels: int = 768

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "layers", "heads", "channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} must be a whole number of 1 or more, not {value!r}")
        if self.channels % self.heads:
            fits = [n for n in range(1, self.channels + 1) if self.channels % n == 0]
            nearest = sorted(sorted(fits, key=lambda n: abs(n - self.heads))[:3])
            raise UserError(
                f"{self.channels} channels cannot be shared by {self.heads} heads:"
                f" use {', '.join(map(str, nearest))} heads"
                f" or a multiple of {self.heads} channels"
            )

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
        raise UserError(f"no model is named {descriptor!r}: use {DESCRIPTORS_HELP}, or --layers --heads --channels")
