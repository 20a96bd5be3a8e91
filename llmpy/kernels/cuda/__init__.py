"""Kernels in Triton for NVIDIA GPUs, without PyTorch: the contract of llmpy/kernels over arrays of the device."""

from llmpy.kernels.cuda.array import DeviceArray, empty
from llmpy.kernels.cuda.attention import attention_decode
from llmpy.kernels.cuda.copies import copy
from llmpy.kernels.cuda.decode import Decode
from llmpy.kernels.cuda.gelu import gelu_backward, gelu_forward
from llmpy.kernels.cuda.matrix import DeviceMatrix, matrix_of
from llmpy.kernels.cuda.matvec import embed_rows
from llmpy.kernels.cuda.memory import take
from llmpy.kernels.cuda.stored import upload_weights

__all__ = [
    "Decode",
    "DeviceArray",
    "DeviceMatrix",
    "attention_decode",
    "copy",
    "embed_rows",
    "empty",
    "gelu_backward",
    "gelu_forward",
    "matrix_of",
    "take",
    "upload_weights",
]
