"""Defaults of the contract: what backends share that compute on the CPU, in the memory of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpy.errors import UserError
from llmpy.quant.matrix import Matrix
from llmpy.utils import system_memory
from llmpy.utils.memory import TRAINING_ADVICE, MemoryPlan

if TYPE_CHECKING:
    from llmpy.models.inference_weights import StoredWeights

device: ModuleType | None = None
LOGITS_ROWS = 256


def padded_width(V: int) -> int:
    """Returns V: rows of logits need no padding."""
    return V


def embed_rows(x: np.ndarray, weights: StoredWeights, tokens: np.ndarray, positions: np.ndarray) -> None:
    """Writes x [T, C]: rows of the token embedding, plus rows of GPT-2's position embedding."""
    wpe = vars(weights).get("wpe")
    rows = weights.embedding.rows(tokens)
    x[...] = rows if wpe is None else rows + wpe[positions]


def upload_weights(weights: StoredWeights) -> StoredWeights:
    """Returns the weights: they are in the memory of the host already."""
    return weights


def matrix_of(array: np.ndarray) -> Matrix:
    """Returns an array [OC, C] as a Matrix, without a copy."""
    return Matrix.of(array)


def take(plan: MemoryPlan, advice: str = TRAINING_ADVICE) -> dict[str, Any]:
    """Allocates all arrays of a plan in the memory of the host."""
    return plan.take(advice)


def headroom() -> int | None:
    """Bytes of the host's memory that a plan may take."""
    return system_memory.room()


def empty(*shape: Any, dtype: Any = np.float32) -> np.ndarray:
    """A new array with arbitrary contents."""
    return np.empty(shape[0] if shape and isinstance(shape[0], tuple) else shape, dtype)


def copy(to: np.ndarray, source: np.ndarray) -> None:
    """Copies source to `to`; NumPy handles overlap."""
    to[...] = source


def mean(y: np.ndarray, x: np.ndarray) -> None:
    """Writes the mean of x to y [1]."""
    y[...] = x.mean(dtype=np.float64)


def open_device(precision: str) -> None:
    """Does nothing: the CPU is always open."""


def device_name() -> str | None:
    """Returns None: the CPU has no memory of its own."""
    return None


def peak_flops(precision: str) -> float | None:
    """Returns None: the CPU's peak is not known in advance."""
    return None


def bfloat16_is_faster() -> bool:
    """Returns False."""
    return False


def set_threads(n: int | None = None) -> int:
    """Returns 1: the backend does not count its threads."""
    return 1


def set_gemm(name: str) -> None:
    """Accepts auto. Raises UserError for the GEMMs of a GPU."""
    if name != "auto":
        raise UserError(f"--gemm {name} is for a GPU, and this run computes on the CPU: leave it out")


@contextmanager
def tuning(timer: Callable[[Callable[[], None]], float] | None = None) -> Iterator[None]:
    """Times nothing: there is one GEMM."""
    yield


def notice() -> str | None:
    """Returns None: there is nothing to tell."""
    return None


def compile_all(report: Callable[[int, int, str], None] | None = None, precision: str = "float32") -> None:
    """Does nothing: there is nothing to compile in advance."""


@contextmanager
def shown() -> Iterator[None]:
    """Shows nothing."""
    yield
