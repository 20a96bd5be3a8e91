"""Kernels in Triton for NVIDIA GPUs, without PyTorch: the contract of llmpy/kernels over arrays of the device."""

from llmpy.kernels.cuda.array import DeviceArray, empty
from llmpy.kernels.cuda.attention import attention_forward
from llmpy.kernels.cuda.attention_backward import attention_backward
from llmpy.kernels.cuda.dropout import dropout
from llmpy.kernels.cuda.embedding import embedding_backward, embedding_forward
from llmpy.kernels.cuda.gelu import gelu_backward, gelu_forward
from llmpy.kernels.cuda.layernorm import layernorm_backward, layernorm_forward
from llmpy.kernels.cuda.optimizer import adamw, clip_scale, global_norm, pack_weight
from llmpy.kernels.cuda.reduce import mean
from llmpy.kernels.cuda.rmsnorm import rmsnorm_backward, rmsnorm_forward
from llmpy.kernels.cuda.rope import rope_backward, rope_forward
from llmpy.kernels.cuda.swiglu import swiglu_backward, swiglu_forward
from llmpy.kernels.cuda.weights import Weight, weight_size

__all__ = [
    "DeviceArray",
    "Weight",
    "adamw",
    "attention_backward",
    "attention_forward",
    "clip_scale",
    "dropout",
    "embedding_backward",
    "embedding_forward",
    "empty",
    "gelu_backward",
    "gelu_forward",
    "global_norm",
    "layernorm_backward",
    "layernorm_forward",
    "mean",
    "pack_weight",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rope_backward",
    "rope_forward",
    "swiglu_backward",
    "swiglu_forward",
    "weight_size",
]
