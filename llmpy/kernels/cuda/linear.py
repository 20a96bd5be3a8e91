"""The linear layer: each product is one call, with what is next to it fused to its end."""

from __future__ import annotations

from llmpy.kernels.cuda.decode.matrix import DeviceMatrix
from llmpy.kernels.cuda.gemm.autotune import multiply
from llmpy.kernels.cuda.gemm.packed_weight import Weight
from llmpy.kernels.cuda.gemm.problem import (
    BIAS,
    BIAS_GELU,
    BIAS_RESIDUAL,
    COLUMN_SUMS,
    GELU_GRADIENT,
    NN,
    NOTHING,
    NT,
    TN,
)
from llmpy.kernels.cuda.primitives.reduce import add_column_sums
from llmpy.kernels.cuda.runtime.array import DeviceArray


def linear_forward(
    y: DeviceArray,
    x: DeviceArray,
    w,
    b: DeviceArray | None = None,
    residual: DeviceArray | None = None,
    pre_gelu: DeviceArray | None = None,
) -> None:
    """x [N, C], w [OC, C], b [OC] -> y [N, OC]; plus `residual` [N, OC]; or its GELU, the product itself kept in
    `pre_gelu`."""
    if residual is not None:
        epilogue, extra = BIAS_RESIDUAL, residual
    elif pre_gelu is not None:
        epilogue, extra = BIAS_GELU, pre_gelu
    else:
        epilogue, extra = NOTHING if b is None else BIAS, None
    multiply(y, x, operand(w, x), NT, epilogue=epilogue, bias=b, extra=extra)


def linear_backward(
    dx: DeviceArray | None, dw: DeviceArray | None, db: DeviceArray | None, dy: DeviceArray, x: DeviceArray, w,
    gelu: bool = False, accumulate: bool = True,
) -> None:  # fmt: skip
    """dy [N, OC], x [N, C], w [OC, C] -> dx [N, C]; dw [OC, C] is added to (or written), db [OC] added to.

    dx may be x itself; each of the three may be None. With `gelu`, x is what the GELU before this layer was given: it
    becomes its GELU, which is what dw takes, and dx (another array then) is the gradient by what x was.
    """
    if gelu:
        assert dx is not None
        multiply(dx, dy, operand(w), NN, epilogue=GELU_GRADIENT, extra=x)
    if dw is not None:
        multiply(dw, dy, x, TN, accumulate, epilogue=NOTHING if db is None else COLUMN_SUMS, bias=db)
    elif db is not None:
        add_column_sums(db, dy)
    if dx is not None and not gelu:
        multiply(dx, dy, operand(w), NN)


def operand(w, x: DeviceArray | None = None) -> DeviceArray:
    """The array [OC, C] that a product with x reads of a weight: an array, a `Weight`, or a `DeviceMatrix`, made of the
    same numbers as x where it is of others."""
    if isinstance(w, DeviceMatrix):
        return w.dequantized(w.data.dtype if x is None else x.dtype)
    return w.matrix if isinstance(w, Weight) else w
