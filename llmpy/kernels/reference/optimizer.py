"""AdamW (Loshchilov, Hutter 2017) over flat buffers, and the norm that gradient clipping needs."""

import numpy as np


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale):
    """p, g, m, v [n]: one step; `step` counts from 1; `grad_scale` multiplies g (clipping). m, v and p are updated."""
    grad = g * grad_scale
    m += (1 - beta1) * (grad - m)
    v += (1 - beta2) * (grad * grad - v)
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    p -= lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)


def global_norm(g):
    """g [n] -> its L2 norm, a Python float; sums run in float64."""
    return float(np.sqrt(np.sum(np.square(g, dtype=np.float64))))
