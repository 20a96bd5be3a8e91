"""The precisions to compute in, by name: float32, or bfloat16 with all that sums up kept in float32."""

from __future__ import annotations

from llmpy import kernels
from llmpy.errors import UserError

SHORT = {"fp32": "float32", "bf16": "bfloat16"}
CHOICES = ("float32", "bfloat16", "auto")


def full_name(name: str) -> str:
    """float32, bfloat16 or auto, from these or their short names. Raises UserError for any other."""
    name = SHORT.get(name, name)
    if name not in CHOICES:
        raise UserError(f"there is no precision {name}: use {', '.join((*CHOICES, *SHORT))}")
    return name


def resolve(name: str, backend: str = "cpu") -> str:
    """float32 or bfloat16; auto is bfloat16 where the processor multiplies it faster than float32.

    Raises UserError for an unknown name, and for bfloat16 on a backend that has none.
    """
    name = full_name(name)
    module = kernels.load(backend)
    if name == "auto":
        return "bfloat16" if getattr(module, "BFLOAT16_IS_FASTER", False) else "float32"
    if name == "bfloat16" and not hasattr(module, "Weight"):
        raise UserError(f"the {backend} kernels compute in float32: leave out --precision {name}")
    return name


def dtype(precision: str) -> type:
    """Of the activations of a run in float32 or bfloat16."""
    import ml_dtypes  # here, because `--help` asks this page for names and needs no arrays
    import numpy as np

    return ml_dtypes.bfloat16 if precision == "bfloat16" else np.float32
