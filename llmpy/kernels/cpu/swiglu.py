"""SwiGLU (Shazeer 2020): y = silu(gate) * up. Bound by memory: the backward pass makes y again while gate and up are at
hand, which costs less than to read it."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmpy.kernels.cpu.jit.compile import acts2, i64, kernel
from llmpy.kernels.cpu.jit.intrinsics import narrow_like, widen
from llmpy.kernels.cpu.jit.vector_math import ONE, exp

BLOCK = 1024  # numbers at a time, in the nearest cache


@njit(fastmath={"contract"}, error_model="numpy")
def _sigmoid(x):
    return ONE / (ONE + exp(-x))


def swiglu_forward(y, gateup, up=None):
    """gateup [N, 2H], or gate and up [N, H] apart -> y [N, H]."""
    H = y.shape[1]
    _swiglu_forward(y, gateup, gateup if up is None else up, H if up is None else 0)


@kernel(acts2, acts2, acts2, i64)
def _swiglu_forward(y, gates, ups, first):
    """ups from column `first` on"""
    N, H = y.shape
    for n in prange(N):
        gate, up, output = gates[n, :H], ups[n, first : first + H], y[n]
        for i in range(H):
            g = widen(gate[i])
            output[i] = narrow_like(y, g * _sigmoid(g) * widen(up[i]))


@kernel(acts2, acts2, acts2, acts2)
def swiglu_backward(dgateup, y, dy, gateup):
    """dy [N, H] -> dgateup [N, 2H], and the output y [N, H] once more; dgateup may be gateup, and y may be dy."""
    N, H = y.shape
    for n in prange(N):
        # By way of buffers of its own: where results go over what they are made of, LLVM would not make vector code.
        output, dgate, dup = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        for start in range(0, H, BLOCK):
            end = min(H, start + BLOCK)
            gate, up, gradient = gateup[n, start:end], gateup[n, H + start : H + end], dy[n, start:end]
            for i in range(gate.size):
                g, u, dout = widen(gate[i]), widen(up[i]), widen(gradient[i])
                sigmoid = _sigmoid(g)
                silu = g * sigmoid
                output[i] = silu * u
                dgate[i] = dout * u * sigmoid * (ONE + g * (ONE - sigmoid))
                dup[i] = dout * silu
            to_y, to_gate, to_up = y[n, start:end], dgateup[n, start:end], dgateup[n, H + start : H + end]
            for i in range(to_y.size):
                to_y[i] = narrow_like(y, output[i])
                to_gate[i] = narrow_like(dgateup, dgate[i])
                to_up[i] = narrow_like(dgateup, dup[i])
