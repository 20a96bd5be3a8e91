"""AdamW (Loshchilov, Hutter 2017) over flat buffers, the norm for gradient clipping, and bfloat16 copies of weights."""

import ml_dtypes
import numpy as np


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale, weight=None, rounding=0):
    """Updates p, m and v [n] from g [n]; `step` counts from 1; `grad_scale` multiplies g (clipping).

    With a `weight`, the arrays are [OC, C], and the weight becomes the new p as `pack_weight` packs it.
    """
    grad = g * grad_scale
    m += (1 - beta1) * (grad - m)
    v += (1 - beta2) * (grad * grad - v)
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    p -= lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)
    if weight is not None:
        pack_weight(weight, p, rounding)


def pack_weight(weight, w, rounding=0):
    """Rounds float32 w [OC, C] to bfloat16: to nearest, or stochastically with the seed `rounding` (32 bits).

    Stochastic rounding adds 16 random bits below the last bit that bfloat16 keeps, so that the mean is w. The random
    bits are a hash of the element's index: the last rounds of xxHash32 (Collet 2014).
    """
    if rounding:
        bits = np.arange(w.size, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(rounding)
        for shift, factor in ((15, 0x85EBCA77), (13, 0xC2B2AE3D)):
            bits = (bits ^ bits >> np.uint32(shift)) * np.uint32(factor)
        bits = (bits ^ bits >> np.uint32(16)) & np.uint32(0xFFFF)
        raised = (w.astype(np.float32).view(np.uint32).reshape(-1) + bits) & np.uint32(0xFFFF0000)
        w = np.where(np.isnan(w), w, raised.view(np.float32).reshape(w.shape))
    weight.numbers[:] = w.reshape(-1).astype(ml_dtypes.bfloat16)


def global_norm(g):
    """The L2 norm of g [n], a Python float, summed in float64."""
    return float(np.sqrt(np.sum(np.square(g, dtype=np.float64))))
