"""The specification of every operation, in NumPy: short, slow, and right in any precision. Read these first."""

from llmpy.kernels.reference.attention import attention_backward, attention_forward
from llmpy.kernels.reference.classifier import classifier_backward, classifier_forward
from llmpy.kernels.reference.decode import Decode
from llmpy.kernels.reference.dropout import dropout
from llmpy.kernels.reference.embedding import embedding_backward, embedding_forward
from llmpy.kernels.reference.gelu import gelu_backward, gelu_forward
from llmpy.kernels.reference.layernorm import layernorm_backward, layernorm_forward
from llmpy.kernels.reference.linear import linear_backward, linear_forward
from llmpy.kernels.reference.optimizer import adamw, global_norm
from llmpy.kernels.reference.rmsnorm import rmsnorm_backward, rmsnorm_forward
from llmpy.kernels.reference.rope import rope_backward, rope_forward
from llmpy.kernels.reference.swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "Decode",
    "adamw",
    "attention_backward",
    "attention_forward",
    "classifier_backward",
    "classifier_forward",
    "dropout",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "global_norm",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rope_backward",
    "rope_forward",
    "swiglu_backward",
    "swiglu_forward",
]
