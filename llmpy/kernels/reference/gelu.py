"""GELU in the tanh form of GPT-2 (Hendrycks, Gimpel 2016): y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""

import numpy as np

SCALE = np.sqrt(2 / np.pi).item()
CUBIC = 0.044715


def gelu_forward(y, x):
    """x -> y, any shape; y may be x."""
    y[:] = 0.5 * x * (1 + np.tanh(SCALE * (x + CUBIC * x**3)))


def gelu_backward(dx, dy, x):
    """dy -> dx = dy * GELU'(x), any shape; dx may be dy."""
    t = np.tanh(SCALE * (x + CUBIC * x**3))
    dx[:] = dy * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * SCALE * (1 + 3 * CUBIC * x**2))
