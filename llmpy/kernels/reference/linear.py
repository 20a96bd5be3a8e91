"""The linear layer, y = x w^T + b, fused with a residual addition, or with the GELU before or after the layer."""

import ml_dtypes
import numpy as np

from llmpy.kernels.reference.gelu import gelu_backward, gelu_forward
from llmpy.quant.matrix import Matrix


def linear_forward(y, x, w, b=None, residual=None, pre_gelu=None):
    """x [N, C], w [OC, C], b [OC] -> y [N, OC], plus `residual` [N, OC]; with `pre_gelu`, y receives the GELU of what
    `pre_gelu` receives."""
    result = x @ _array(w).T
    if b is not None:
        result += b
    if residual is not None:
        result += residual
    if pre_gelu is None:
        y[:] = result
    else:
        pre_gelu[:] = result
        gelu_forward(y, pre_gelu)


def linear_backward(dx, dw, db, dy, x, w, gelu=False, accumulate=True):
    """dy [N, OC], x [N, C], w [OC, C] -> dx [N, C]; accumulates dw [OC, C] (or overwrites dw) and db [OC].

    dx may be x itself; each of the three may be None. With `gelu`, x is the input of the GELU before this layer: x
    becomes GELU(x), which dw needs, and dx, which must be another array, is the gradient of the GELU's input.
    """
    w = _array(w)
    if gelu:
        gelu_backward(dx, dy @ w, x)
        gelu_forward(x, x.copy())
    if dw is not None:
        result = dy.T @ x
        dw[:] = dw + result if accumulate else result  # not dw * accumulate: memory that is not in use may hold NaN
    if db is not None:
        db += dy.sum(0)
    if dx is not None and not gelu:
        dx[:] = dy @ w


def weight_size(OC, C):
    """The number of bfloat16 elements that a weight [OC, C] takes."""
    return OC * C


class Weight:
    """A weight [OC, C] in `numbers`, bfloat16 [weight_size(OC, C)], which `pack_weight` and `adamw` write."""

    def __init__(self, numbers, OC, C):
        assert numbers.shape == (weight_size(OC, C),)
        assert numbers.dtype == ml_dtypes.bfloat16
        self.numbers, self.shape = numbers, (OC, C)


def _array(w):
    """A weight of any kind, [OC, C], as an array that NumPy multiplies."""
    if isinstance(w, Matrix):
        return w.dequantize().astype(np.float64)
    return w.numbers.reshape(w.shape).astype(np.float32) if isinstance(w, Weight) else w
