"""Root mean square normalisation (Zhang, Sennrich 2019): y = x * rstd * w with rstd = 1 / sqrt(mean(x^2) + eps), over
the last axis."""

import numpy as np


def rmsnorm_forward(y, rstd, x, w, eps=1e-5):
    """x [N, C], w [C] -> y [N, C]; rstd [N] is saved for the backward pass."""
    rstd[:] = 1 / np.sqrt(np.square(x).mean(-1) + eps)
    y[:] = x * rstd[:, None] * w


def rmsnorm_backward(dresidual, dw, dy, x, w, rstd):
    """dy [N, C]; accumulates dresidual [N, C] and dw [C]: the residual stream x has a gradient already."""
    norm = x * rstd[:, None]
    dw += (dy * norm).sum(0)
    dnorm = dy * w
    dresidual += rstd[:, None] * (dnorm - norm * (dnorm * norm).mean(-1, keepdims=True))
