"""The angles by which Llama turns its queries and keys (Su et al. 2021, RoFormer), and how Llama 3.1 stretches them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmpy.models.config import RopeScaling

if TYPE_CHECKING:
    from llmpy.models.llama import LlamaConfig


def rotations(config: LlamaConfig, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 [positions, hs/2], of the angle position * frequency; made in float64."""
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = _stretched(frequencies, config.rope_scaling)
    angles = np.arange(positions)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _stretched(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    turns = scaling.original_context * frequencies / (2 * np.pi)  # in the context the model was first trained with
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(share, 0, 1)  # 1: turns often enough to tell near from far, and stays as it is
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor
