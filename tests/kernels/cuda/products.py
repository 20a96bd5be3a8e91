"""Products of every form, of arrays with guarded borders, and what they should be: for tests of all that multiplies."""

import numpy as np

from llmpy.kernels.cuda.gemm.problem import (
    BIAS_GELU,
    BIAS_RESIDUAL,
    COLUMN_SUMS,
    GELU_GRADIENT,
    NN,
    NOTHING,
    NT,
    TN,
    describe,
)
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.reference import gelu_backward, gelu_forward
from tests.kernels.numerics import BFLOAT16, NARROW, TOLERANCE, assert_agree

LAYOUTS = {"NT": NT, "NN": NN, "TN": TN}
# What models ask for: layout, epilogue, with a bias, added to the result, a result of float32 where the rest is not
FORMS = {
    "logits": (NT, NOTHING, False, False, True),
    "forward": (NT, NOTHING, False, False, False),
    "bias": (NT, 1, True, False, False),
    "bias and residual": (NT, BIAS_RESIDUAL, True, False, False),
    "residual": (NT, BIAS_RESIDUAL, False, False, False),
    "bias and gelu": (NT, BIAS_GELU, True, False, False),
    "gelu": (NT, BIAS_GELU, False, False, False),
    "dx": (NN, NOTHING, False, False, False),
    "dx through gelu": (NN, GELU_GRADIENT, False, False, False),
    "dw": (TN, NOTHING, False, False, True),
    "dw added": (TN, NOTHING, False, True, True),
    "dw and db": (TN, COLUMN_SUMS, True, False, True),
    "dw and db added": (TN, COLUMN_SUMS, True, True, True),
}


def seen(array):
    """A NumPy array as one of the device, where it lies: the interpreter's memory is the host's."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return DeviceArray(array.__array_interface__["data"][0], array.shape, array.dtype, array, strides)


class Case:
    """A product of random arrays in one of the FORMS."""

    def __init__(self, arrays, form, M, N, K, dtype):
        layout, epilogue, biased, accumulate, wide = FORMS[form]
        self.result = np.float32 if wide else dtype
        self.a = arrays.normal(*((K, M) if layout == TN else (M, K)), dtype=dtype)
        self.b = arrays.normal(*((N, K) if layout == NT else (K, N)), scale=K**-0.5, dtype=dtype)
        self.c = (arrays.normal if accumulate else arrays.empty)(M, N, dtype=self.result)
        self.bias = arrays.normal(M if epilogue == COLUMN_SUMS else N) if biased else None
        takes_extra = epilogue in (BIAS_RESIDUAL, BIAS_GELU, GELU_GRADIENT)
        self.extra = arrays.normal(M, N, dtype=self.result) if takes_extra else None
        self.options = (layout, accumulate, epilogue)
        self.expected = self._expected()

    def _expected(self):
        """c, bias and extra as they should be afterwards, in float64."""
        layout, accumulate, epilogue = self.options
        a, b, c, bias, extra = (
            None if x is None else x.astype(float) for x in (self.a, self.b, self.c, self.bias, self.extra)
        )
        y = (a.T if layout == TN else a) @ (b.T if layout == NT else b)
        if accumulate:
            y += c
        if epilogue == COLUMN_SUMS:
            bias = bias + a.sum(0)
        elif bias is not None:
            y += bias
        if epilogue == BIAS_RESIDUAL:
            y += extra
        elif epilogue == BIAS_GELU:
            extra = y
            gelu_forward(y := np.empty_like(extra), extra)
        elif epilogue == GELU_GRADIENT:
            x, dy = extra, y
            gelu_backward(y := np.empty_like(x), dy, x)
            gelu_forward(extra := np.empty_like(x), x)
        return y, bias, extra

    @property
    def arrays(self):
        """c, a, b, bias, extra as the device sees them"""
        return [None if x is None else seen(x) for x in (self.c, self.a, self.b, self.bias, self.extra)]

    @property
    def product(self):
        c, a, b, bias, extra = self.arrays
        return describe(c, a, b, *self.options, bias, extra)

    def check(self):
        for actual, expected in zip((self.c, self.bias, self.extra), self.expected, strict=True):
            if actual is not None:
                narrow = actual.dtype == BFLOAT16
                # GELU of what was rounded: below zero the error is larger than its value.
                floor = 2e-3 if narrow and self.options[2] in (BIAS_GELU, GELU_GRADIENT) else 2e-6
                assert_agree(actual, expected, NARROW if narrow else TOLERANCE, floor)
