"""Layer normalisation (Ba, Kiros, Hinton 2016): y = (x - mean) * rstd * w + b, over the last axis."""

import numpy as np

EPS = 1e-5


def layernorm_forward(y, mean, rstd, x, w, b):
    """x [N, C], w [C], b [C] -> y [N, C]; mean [N] and rstd [N] are saved for the backward pass."""
    mean[:] = x.mean(-1)
    rstd[:] = 1 / np.sqrt(x.var(-1) + EPS)
    y[:] = (x - mean[:, None]) * rstd[:, None] * w + b


def layernorm_backward(dresidual, dw, db, dy, x, w, mean, rstd):
    """dy [N, C]; accumulates dresidual [N, C], dw [C] and db [C]: the residual stream x has a gradient already."""
    norm = (x - mean[:, None]) * rstd[:, None]
    dw += (dy * norm).sum(0)
    db += dy.sum(0)
    dnorm = dy * w
    dresidual += rstd[:, None] * (dnorm - dnorm.mean(-1, keepdims=True) - norm * (dnorm * norm).mean(-1, keepdims=True))
