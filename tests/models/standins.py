"""What prefill asks of the device and is not there yet, by the reference in the interpreter's memory."""

import ctypes

import numpy as np

from llmpy.kernels import cuda, reference
from llmpy.kernels.cuda.matrix import DeviceMatrix


def seen(array):
    if array is None:
        return None
    last = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) + 1
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * (last * array.dtype.itemsize)).from_address(array.address))
    steps = [s * array.dtype.itemsize for s in array.strides]
    return np.lib.stride_tricks.as_strided(memory.view(array.dtype), array.shape, steps)


def linear_forward(y, x, w, b=None, residual=None, pre_gelu=None):
    matrix = seen(w.dequantized() if isinstance(w, DeviceMatrix) else w).astype(np.float64)
    before = None if pre_gelu is None else seen(pre_gelu)
    residual = None if residual is None else seen(residual).astype(float)
    reference.linear_forward(seen(y), seen(x).astype(float), matrix, seen(b), residual, before)


def attention_forward(y, lse, q, k, v):
    reference.attention_forward(seen(y), seen(lse), *(seen(each).astype(float) for each in (q, k, v)))


def install():
    for function in (linear_forward, attention_forward):
        if not hasattr(cuda, function.__name__):
            setattr(cuda, function.__name__, function)
