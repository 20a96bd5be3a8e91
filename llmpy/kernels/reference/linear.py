"""The linear layer, y = x w^T + b, with what is fused to its ends: a residual, or the GELU before or after it."""

import numpy as np

from llmpy.kernels.reference.gelu import gelu_backward, gelu_forward
from llmpy.quant.matrix import Matrix


def linear_forward(y, x, w, b=None, residual=None, pre_gelu=None):
    """x [N, C], w [OC, C], b [OC] -> y [N, OC]; plus `residual` [N, OC]; or its GELU, the product itself kept in
    `pre_gelu`."""
    if isinstance(w, Matrix):
        w = w.dequantize().astype(np.float64)
    product = x @ w.T
    if b is not None:
        product += b
    if residual is not None:
        product += residual
    if pre_gelu is None:
        y[:] = product
    else:
        pre_gelu[:] = product
        gelu_forward(y, pre_gelu)


def linear_backward(dx, dw, db, dy, x, w, gelu=False, accumulate=True):
    """dy [N, OC], x [N, C], w [OC, C] -> dx [N, C]; dw [OC, C] is added to (or written), db [OC] added to.

    dx may be x itself; each of the three may be None. With `gelu`, x is what the GELU before this layer was given: it
    becomes its GELU, which is what dw takes, and dx (another array then) is the gradient by what x was.
    """
    if gelu:
        gelu_backward(dx, dy @ w, x)
        gelu_forward(x, x.copy())
    if dw is not None:
        product = dy.T @ x
        dw[:] = dw + product if accumulate else product  # not dw * accumulate: what is there may be NaN
    if db is not None:
        db += dy.sum(0)
    if dx is not None and not gelu:
        dx[:] = dy @ w
