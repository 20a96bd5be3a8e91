"""The specification of every operation, in NumPy: short, slow, and right in any precision. Read these files first."""

from llmpy.kernels.defaults import (
    LOGITS_ROWS,
    bfloat16_is_faster,
    compile_all,
    copy,
    device,
    device_name,
    embed_rows,
    empty,
    headroom,
    matrix_of,
    mean,
    notice,
    open_device,
    padded_width,
    peak_flops,
    set_gemm,
    set_threads,
    shown,
    take,
    tuning,
    upload_weights,
)
from llmpy.kernels.reference.attention import attention_backward, attention_forward
from llmpy.kernels.reference.classifier import classifier_backward, classifier_forward
from llmpy.kernels.reference.decode import Decode
from llmpy.kernels.reference.dropout import dropout
from llmpy.kernels.reference.embedding import embedding_backward, embedding_forward
from llmpy.kernels.reference.gelu import gelu_backward, gelu_forward
from llmpy.kernels.reference.layernorm import layernorm_backward, layernorm_forward
from llmpy.kernels.reference.linear import Weight, linear_backward, linear_forward, weight_size
from llmpy.kernels.reference.optimizer import adamw, global_norm, pack_weight
from llmpy.kernels.reference.rmsnorm import rmsnorm_backward, rmsnorm_forward
from llmpy.kernels.reference.rope import rope_backward, rope_forward
from llmpy.kernels.reference.swiglu import swiglu_backward, swiglu_forward

PRECISIONS: tuple[str, ...] = ("float32",)

__all__ = [
    "LOGITS_ROWS",
    "PRECISIONS",
    "Decode",
    "Weight",
    "adamw",
    "attention_backward",
    "attention_forward",
    "bfloat16_is_faster",
    "classifier_backward",
    "classifier_forward",
    "compile_all",
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
    "headroom",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "matrix_of",
    "mean",
    "notice",
    "open_device",
    "pack_weight",
    "padded_width",
    "peak_flops",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rope_backward",
    "rope_forward",
    "set_gemm",
    "set_threads",
    "shown",
    "swiglu_backward",
    "swiglu_forward",
    "take",
    "tuning",
    "upload_weights",
    "weight_size",
]
