"""llm.c's debug state: a batch with the logits, loss and gradients that another program found for it, to compare with.

A header of 256 int32 (magic, 2, B, T), x and y int32 [B, T], logits float32 [B, T, V], the loss, and the gradients of
all 16 tensors in the order of the model file. The other sizes are not in the file: they are those of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmpy.errors import UserError
from llmpy.formats.llmc.model import (
    HEADER_BYTES,
    check_size,
    header_bytes,
    read_floats,
    read_header,
    read_model_header,
    read_parameters,
    write_floats,
)
from llmpy.models.gpt2 import GPT2, GPT2Config, gpt2_table
from llmpy.models.parameters import Parameters, total_size
from llmpy.utils.atomic_files import write_atomic
from llmpy.utils.memory import MemoryPlan

DEBUG_MAGIC, DEBUG_VERSION = 20240327, 2
FLOAT32 = np.dtype("<f4")
# Relative differences allowed: float32 sums in another order; or a state that was made before the weights were rounded.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


@dataclass(frozen=True)
class DebugState:
    """x, y int32 [B, T]; logits float32 [B, T, V]; loss in nats; gradients of all parameters."""

    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    loss: float
    gradients: Parameters


@dataclass(frozen=True)
class Difference:
    """Difference of one tensor: largest absolute difference, and norm of the difference over the expected norm."""

    name: str
    absolute: float
    relative: float
    passed: bool


def read_debug_header(path: Path) -> tuple[int, int, int]:
    """(B, T, size of the file). Raises UserError where it is no debug state or too short for its batch."""
    header, size = read_header(path, DEBUG_MAGIC, "a debug state of llm.c")
    version, B, T = (int(n) for n in header[1:4])
    if version != DEBUG_VERSION:
        raise UserError(f"{path} has version {version}: readable is {DEBUG_VERSION}")
    if min(B, T) < 1:
        raise UserError(f"{path} has a damaged header: {B} sequences of {T} tokens")
    if size < HEADER_BYTES + 8 * B * T:
        raise UserError(f"{path} is cut off: it has {size} bytes, too few for {B} sequences of {T} tokens")
    return B, T, size


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """x and y, int32 [B, T], of a debug state: all that can be read without knowing the model."""
    B, T, _ = read_debug_header(path)
    both = np.fromfile(path, "<i4", 2 * B * T, offset=HEADER_BYTES).astype(np.int32, copy=False)
    x, y = both.reshape(2, B, T)
    return x, y


def read_debug_state(path: Path, config: GPT2Config) -> DebugState:
    """The state made for a model of this shape. Raises UserError, before memory is taken, where it does not fit it."""
    B, T, size = read_debug_header(path)
    V, N = config.vocab_size, total_size(gpt2_table(config))
    if T > config.context:
        raise UserError(f"{path} has sequences of {T} tokens, the model a context of {config.context}")
    check_size(path, size, HEADER_BYTES + 8 * B * T + 4 * (B * T * V + 1 + N))
    x, y = read_batch(path)
    for name, tokens in (("x", x), ("y", y)):
        if tokens.min() < 0 or tokens.max() >= V:
            raise UserError(f"{path} is damaged: {name} holds tokens outside of the vocabulary of {V}")
    plan = MemoryPlan()
    plan.add("debug state", "logits", B * T * V + 1)
    plan.add("debug state", "gradients", N)
    arrays = plan.take()
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES + 8 * B * T)
        for array in arrays.values():
            read_floats(file, array, FLOAT32)
    logits, loss = arrays["logits"][:-1].reshape(B, T, V), float(arrays["logits"][-1])
    return DebugState(x, y, logits, loss, Parameters(gpt2_table(config), arrays["gradients"]))


def write_debug_state(path: Path, state: DebugState) -> None:
    """Writes a debug state, whole or not at all."""
    B, T = state.x.shape
    with write_atomic(path) as file:
        file.write(header_bytes([DEBUG_MAGIC, DEBUG_VERSION, B, T]))
        for tokens in (state.x, state.y):
            file.write(tokens.astype("<i4").tobytes())
        write_floats(file, state.logits.reshape(-1), FLOAT32)
        file.write(np.array(state.loss, FLOAT32).tobytes())
        write_floats(file, state.gradients.flat, FLOAT32)


def make_debug_state(model: GPT2, x: np.ndarray, y: np.ndarray) -> DebugState:
    """The state of our own model for a batch x, y int32 [B, T]; its gradients are the model's, not a copy."""
    logits = model.logits(x)
    return DebugState(x, y, logits, float(model.loss_and_gradients(x, y)), model.gradients)


def check_debug_state(model_path: Path, state_path: Path, backend: str = "cpu") -> list[Difference]:
    """Runs the model of a `.bin` file on the batch of a debug state: differences in logits, loss and all gradients."""
    header = read_model_header(model_path)
    expected = read_debug_state(state_path, header.config)
    B, T = expected.x.shape
    model = GPT2(header.config, backend, B, T)
    read_parameters(model_path, header.config, model.parameters)
    ours = make_debug_state(model, expected.x, expected.y)

    tolerance = TOLERANCE[header.dtype]
    losses = (np.array([ours.loss]), np.array([expected.loss]))
    differences = [_compare("logits", ours.logits, expected.logits, tolerance), _compare("loss", *losses, tolerance)]
    for spec, gradient in expected.gradients.items():
        differences.append(_compare(f"d{spec.name}", ours.gradients[spec.name], gradient, tolerance))
    return differences


def _compare(name: str, ours: np.ndarray, expected: np.ndarray, tolerance: float) -> Difference:
    """NaN on either side does not pass."""
    difference = (ours - expected).reshape(-1)
    norm, scale = (float(np.sqrt(np.dot(a, a))) for a in (difference, expected.reshape(-1)))
    relative = norm / scale if scale else norm
    return Difference(name, float(np.abs(difference).max()), relative, bool(relative <= tolerance))
