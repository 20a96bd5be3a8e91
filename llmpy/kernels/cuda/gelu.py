"""GELU in the tanh form of GPT-2 (Hendrycks, Gimpel 2016), as a layer of its own and inside other kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch

SCALE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)
BLOCK = 2**16 if INTERPRETED else 2048


def gelu_forward(y: DeviceArray, x: DeviceArray) -> None:
    """x -> y, any shape; y may be x."""
    launch(_forward, (cdiv(x.size, BLOCK),), y, x, x.size, block=BLOCK)


def gelu_backward(dx: DeviceArray, dy: DeviceArray, x: DeviceArray) -> None:
    """dy -> dx = dy * GELU'(x), any shape; dx may be dy."""
    launch(_backward, (cdiv(x.size, BLOCK),), dx, dy, x, x.size, block=BLOCK)


@triton.jit
def tanh(x):
    """tanh of float32 x, in a form that cannot overflow."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def gelu(x):
    """GELU of float32 x."""
    return 0.5 * x * (1.0 + tanh(SCALE * (x + CUBIC * x * x * x)))


@triton.jit
def gelu_gradient(x):
    """The derivative of GELU at float32 x."""
    t = tanh(SCALE * (x + CUBIC * x * x * x))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SCALE * (1.0 + 3.0 * CUBIC * x * x)


@triton.jit
def _forward(y, x, n, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < n
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, gelu(value).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dx, dy, x, n, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < n
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32) * gelu_gradient(value)
    tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)
