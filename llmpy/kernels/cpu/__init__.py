"""The CPU backend: Numba kernels over all cores, matrix products on micro-kernels emitted as LLVM IR.

The same names and arguments as `llmpy.kernels.reference`. `compile_all` compiles every kernel, or loads what an earlier
run compiled; without it each kernel is compiled at its first call.
"""

from llmpy.kernels.cpu.attention import attention_backward, attention_forward
from llmpy.kernels.cpu.classifier import classifier_backward, classifier_forward
from llmpy.kernels.cpu.decode.decode import Decode
from llmpy.kernels.cpu.dropout import dropout
from llmpy.kernels.cpu.embedding import embedding_backward, embedding_forward
from llmpy.kernels.cpu.gelu import gelu_backward, gelu_forward
from llmpy.kernels.cpu.gemm.packed_weight import Weight, weight_size
from llmpy.kernels.cpu.jit.compile import compile_all, compile_half
from llmpy.kernels.cpu.jit.isa import ISA, notice
from llmpy.kernels.cpu.jit.scratch import physical_cores, scratch_bytes, set_threads
from llmpy.kernels.cpu.layernorm import layernorm_backward, layernorm_forward
from llmpy.kernels.cpu.linear import linear_backward, linear_forward
from llmpy.kernels.cpu.optimizer import adamw, global_norm, pack_weight
from llmpy.kernels.cpu.rmsnorm import rmsnorm_backward, rmsnorm_forward
from llmpy.kernels.cpu.rope import rope_backward, rope_forward
from llmpy.kernels.cpu.swiglu import swiglu_backward, swiglu_forward
from llmpy.kernels.defaults import (
    LOGITS_ROWS,
    copy,
    device,
    device_name,
    embed_rows,
    empty,
    headroom,
    matrix_of,
    mean,
    open_device,
    padded_width,
    peak_flops,
    set_gemm,
    shown,
    take,
    tuning,
    upload_weights,
)

__all__ = [
    "ISA",
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
    "compile_half",
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
    "physical_cores",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rope_backward",
    "rope_forward",
    "scratch_bytes",
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

PRECISIONS: tuple[str, ...] = ("float32", "bfloat16")


def bfloat16_is_faster() -> bool:
    """Returns whether the CPU multiplies bfloat16; other CPUs convert bfloat16 to float32, which saves no time."""
    return ISA.bfloat16 in ("pairs", "matrix")


set_threads()
