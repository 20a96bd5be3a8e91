"""Kernels in Triton for NVIDIA GPUs, without PyTorch: the contract of llmpy/kernels over arrays of the device."""

from llmpy.kernels.cuda.array import DeviceArray, empty
from llmpy.kernels.cuda.attention import attention_forward
from llmpy.kernels.cuda.attention_backward import attention_backward
from llmpy.kernels.cuda.attention_decode import attention_decode
from llmpy.kernels.cuda.gelu import gelu_backward, gelu_forward

__all__ = [
    "DeviceArray",
    "attention_backward",
    "attention_decode",
    "attention_forward",
    "empty",
    "gelu_backward",
    "gelu_forward",
]
