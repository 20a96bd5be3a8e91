"""The linear layer: each product is one call of the GEMM, with what is next to it fused to its end."""

from __future__ import annotations

import numpy as np
from numba import prange

from llmpy.kernels.cpu.gemm.epilogue import BIAS, BIAS_GELU, BIAS_RESIDUAL, GELU_GRADIENT, NOTHING
from llmpy.kernels.cpu.gemm.gemm import NN, NT, TN, gemm
from llmpy.kernels.cpu.gemm.packed_weight import floats_of
from llmpy.kernels.cpu.jit.compile import acts2, kernel, vector
from llmpy.kernels.cpu.jit.intrinsics import widen
from llmpy.quant.matrix import Matrix
from llmpy.quant.types import F32

_NO_VECTOR = np.zeros(0, np.float32)


def linear_forward(y, x, w, b=None, residual=None, pre_gelu=None):
    """x [N, C], w [OC, C], b [OC] -> y [N, OC]; plus `residual` [N, OC]; or its GELU, the product itself kept in
    `pre_gelu`."""
    if isinstance(w, Matrix) and w.kind == F32 and x.dtype == np.float32:
        w = floats_of(w)
    if residual is not None:
        epilogue, extra = BIAS_RESIDUAL, residual
    elif pre_gelu is not None:
        epilogue, extra = BIAS_GELU, pre_gelu
    else:
        epilogue, extra = BIAS if b is not None else NOTHING, None
    if b is None:
        b = _NO_VECTOR if epilogue == NOTHING else np.zeros(w.shape[0], np.float32)
    if epilogue == BIAS_RESIDUAL and np.may_share_memory(y, residual):
        gemm(y, x, w, NT, accumulate=True, epilogue=BIAS, bias=b)  # y + x w^T: the residual is there already
    else:
        gemm(y, x, w, NT, epilogue=epilogue, bias=b, extra=extra)


def linear_backward(dx, dw, db, dy, x, w, gelu=False, accumulate=True):
    """dy [N, OC], x [N, C], w [OC, C] -> dx [N, C]; dw [OC, C] is added to (or written), db [OC] added to.

    dx may be x itself; each of the three may be None. With `gelu`, x is what the GELU before this layer was given: it
    becomes its GELU, which is what dw takes, and dx (another array then) is the gradient by what x was.
    """
    if gelu:
        gemm(dx, dy, w, NN, epilogue=GELU_GRADIENT, extra=x)
    if dw is not None:
        gemm(dw, dy, x, TN, accumulate=accumulate)
    if db is not None:
        add_column_sums(db, dy)
    if dx is not None and not gelu:
        gemm(dx, dy, w, NN)


COLUMNS = 64  # to a task: four cache lines of a row


@kernel(vector, acts2)
def add_column_sums(db, dy):
    """db [OC] += dy [N, OC] summed over the rows, from the first to the last."""
    for block in prange((dy.shape[1] + COLUMNS - 1) // COLUMNS):
        start, end = block * COLUMNS, min(dy.shape[1], (block + 1) * COLUMNS)
        total = np.zeros(COLUMNS, np.float32)
        for i in range(dy.shape[0]):
            row = dy[i, start:end]
            for j in range(row.size):
                total[j] += widen(row[j])
        for j in range(end - start):
            db[start + j] += total[j]
