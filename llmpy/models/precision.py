"""The precisions to compute in, by name: float32, or bfloat16 with all that sums up kept in float32.

A model that generates may also keep the numbers of its file, whatever they are (`stored`), or have its matrices made 8
bits (`q8`): what it computes beside them is then in one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmpy import kernels
from llmpy.errors import UserError

SHORT = {"fp32": "float32", "bf16": "bfloat16"}
CHOICES = ("float32", "bfloat16", "auto")
GENERATING = ("stored", "float32", "bfloat16", "q8")
_GENERATING_SHORT = {**SHORT, "int8": "q8", "q8_0": "q8"}


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
        return "bfloat16" if module.bfloat16_is_faster() else "float32"
    if name not in module.PRECISIONS:
        raise UserError(f"the {backend} kernels compute in float32: leave out --precision {name}")
    return name


def of_generation(name: str, kinds: Iterable[str], backend: str = "cpu") -> tuple[str, str]:
    """Resolves the precision to generate with: (one of GENERATING, and in which of float32 and bfloat16
    the cache and the activations are); auto is as for `resolve`.

    Raises UserError for an unknown name, and for bfloat16 on a backend that has none.
    """
    name = _GENERATING_SHORT.get(name, name)
    if name == "auto":
        name = resolve(name, backend)
    if name not in GENERATING:
        raise UserError(f"there is no precision {name}: use {', '.join((*GENERATING, 'auto'))}")
    if name in ("float32", "bfloat16"):
        return name, resolve(name, backend)
    exact = name == "stored" and set(kinds) <= {"F32", "F16"}
    return name, "float32" if exact or "bfloat16" not in kernels.load(backend).PRECISIONS else "bfloat16"


def dtype(precision: str) -> type:
    """Returns the dtype of the activations for float32 or bfloat16."""
    import ml_dtypes  # here, because `--help` asks this page for names and needs no arrays
    import numpy as np

    return ml_dtypes.bfloat16 if precision == "bfloat16" else np.float32
