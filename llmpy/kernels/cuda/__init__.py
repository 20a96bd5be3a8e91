"""Kernels in Triton for NVIDIA GPUs, without PyTorch: the contract of llmpy/kernels over arrays of the device."""

from typing import Any

from llmpy.kernels.cuda.attention.backward import attention_backward
from llmpy.kernels.cuda.attention.forward import attention_forward
from llmpy.kernels.cuda.classifier import LOGITS_ROWS, classifier_backward, classifier_forward, padded_width
from llmpy.kernels.cuda.decode.attention import attention_decode
from llmpy.kernels.cuda.decode.decode import Decode
from llmpy.kernels.cuda.decode.fused_linear import embed_rows
from llmpy.kernels.cuda.decode.matrix import DeviceMatrix, matrix_of
from llmpy.kernels.cuda.decode.upload_weights import upload_weights
from llmpy.kernels.cuda.dropout import dropout
from llmpy.kernels.cuda.embedding import embedding_backward, embedding_forward
from llmpy.kernels.cuda.gelu import gelu_backward, gelu_forward
from llmpy.kernels.cuda.gemm.autotune import set_gemm, tuning
from llmpy.kernels.cuda.gemm.packed_weight import Weight, weight_size
from llmpy.kernels.cuda.layernorm import layernorm_backward, layernorm_forward
from llmpy.kernels.cuda.linear import linear_backward, linear_forward
from llmpy.kernels.cuda.optimizer import adamw, clip_scale, global_norm, pack_weight
from llmpy.kernels.cuda.primitives.reduce import mean
from llmpy.kernels.cuda.rmsnorm import rmsnorm_backward, rmsnorm_forward
from llmpy.kernels.cuda.rope import rope_backward, rope_forward
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray, empty
from llmpy.kernels.cuda.runtime.compiling import shown
from llmpy.kernels.cuda.runtime.copies import copy
from llmpy.kernels.cuda.runtime.device import choose
from llmpy.kernels.cuda.runtime.limits import bfloat16_is_faster, device_name, open_device, peak_flops, room, take
from llmpy.kernels.cuda.swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "ATTENTION_TURNS",
    "LOGITS_ROWS",
    "Decode",
    "DeviceArray",
    "DeviceMatrix",
    "Weight",
    "adamw",
    "attention_backward",
    "attention_decode",
    "attention_forward",
    "bfloat16_is_faster",
    "choose",
    "classifier_backward",
    "classifier_forward",
    "clip_scale",
    "copy",
    "device",
    "device_name",
    "dropout",
    "embed_rows",
    "embedding_backward",
    "embedding_forward",
    "empty",
    "gelu_backward",
    "gelu_forward",
    "global_norm",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "matrix_of",
    "mean",
    "open_device",
    "pack_weight",
    "padded_width",
    "peak_flops",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "room",
    "rope_backward",
    "rope_forward",
    "set_gemm",
    "shown",
    "swiglu_backward",
    "swiglu_forward",
    "take",
    "tuning",
    "upload_weights",
    "weight_size",
]

ATTENTION_TURNS = True  # attention takes q and k as they are before rope_forward, and turns them as it reads


def __getattr__(name: str) -> Any:
    """Computes attributes that only the card can answer, when they are first read."""
    if name == "BFLOAT16_IS_FASTER":
        return bfloat16_is_faster()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
