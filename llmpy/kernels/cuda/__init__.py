"""Kernels in Triton for NVIDIA GPUs, without PyTorch: the contract of llmpy/kernels over arrays of the device."""

from llmpy.kernels.cuda.array import DeviceArray, empty
from llmpy.kernels.cuda.choosing import set_gemm, tuning
from llmpy.kernels.cuda.classifier import LOGITS_ROWS, classifier_backward, classifier_forward, padded_width
from llmpy.kernels.cuda.gelu import gelu_backward, gelu_forward
from llmpy.kernels.cuda.linear import linear_backward, linear_forward
from llmpy.kernels.cuda.weights import Weight, weight_size

__all__ = [
    "LOGITS_ROWS",
    "DeviceArray",
    "Weight",
    "classifier_backward",
    "classifier_forward",
    "empty",
    "gelu_backward",
    "gelu_forward",
    "linear_backward",
    "linear_forward",
    "padded_width",
    "set_gemm",
    "tuning",
    "weight_size",
]
