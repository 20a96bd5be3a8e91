"""SwiGLU (Shazeer 2020): y = silu(gate) * up with silu(x) = x / (1 + exp(-x)); gate and up are the halves of a row."""

import numpy as np


def swiglu_forward(y, gateup, up=None):
    """gateup [N, 2H], or gate and up [N, H] apart -> y [N, H]."""
    gate, up, sigmoid = _parts(gateup, up)
    y[:] = gate * sigmoid * up


def swiglu_backward(dgateup, y, dy, gateup):
    """dy [N, H] -> dgateup [N, 2H]; recomputes the output y [N, H]; dgateup may be gateup, and y may be dy."""
    gate, up, sigmoid = _parts(gateup)
    silu, H = gate * sigmoid, dy.shape[-1]
    output, dgate, dup = silu * up, dy * up * sigmoid * (1 + gate * (1 - sigmoid)), dy * silu
    dgateup[:, :H], dgateup[:, H:], y[:] = dgate, dup, output


def _parts(gateup, up=None):
    """gateup [N, 2H], or gate and up [N, H] apart -> gate, up, sigmoid(gate) [N, H]."""
    gate, up = np.split(gateup, 2, axis=-1) if up is None else (gateup, up)
    return gate, up, 0.5 * (1 + np.tanh(0.5 * gate))  # the sigmoid in a form that cannot overflow
