"""The precision of what is measured: "float32", or "bfloat16" with float32 masters."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np


def resolve(name: str) -> str:
    """What --precision takes -> "float32" or "bfloat16". Raises UserError for a precision that cannot be had here."""
    if name in ("float32", "fp32"):
        return "float32"
    return str(importlib.import_module("llmpy.precision").resolve(name))


def dtype(precision: str) -> type:
    """Of an array in this precision."""
    return np.float32 if precision == "float32" else ml_dtypes.bfloat16


def keyword(precision: str) -> dict[str, Any]:
    """The keyword argument of `GPT2` and `kernels.start`."""
    return {} if precision == "float32" else {"precision": precision}
