"""The models: each a table of parameters, a forward and a backward pass, written over the kernel contract.

Which of them a config describes is decided here and nowhere else.
"""

from __future__ import annotations

from llmpy.models.config import LlamaConfig, ModelConfig
from llmpy.models.decoder import Decoder
from llmpy.models.gpt2 import GPT2
from llmpy.models.gpt2_decode import GPT2Decoder
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import Llama
from llmpy.models.llama_decode import LlamaDecoder
from llmpy.utils.memory import MemoryPlan

Model = GPT2 | Llama


def new_model(
    config: ModelConfig,
    backend: str = "cpu",
    batch_size: int | None = None,
    sequence_length: int | None = None,
    recompute: int = 0,
    precision: str = "float32",
    stochastic_rounding: bool = False,
    seed: int = 0,
    dropout: float = 0.0,
) -> Model:
    """A model of the config's family, its parameters not yet drawn; the arguments are those of Transformer."""
    arguments = (backend, batch_size, sequence_length, recompute, precision, stochastic_rounding, seed, dropout)
    return Llama(config, *arguments) if isinstance(config, LlamaConfig) else GPT2(config, *arguments)


def new_decoder(
    weights: StoredWeights,
    backend: str = "cpu",
    sequences: int = 1,
    context: int | None = None,
    precision: str = "float32",
) -> Decoder:
    """What generates with these weights, `sequences` texts at a time; the arguments are those of Decoder."""
    family = LlamaDecoder if isinstance(weights.config, LlamaConfig) else GPT2Decoder
    return family(weights, backend, sequences, context, precision)


def plan_training(
    config: ModelConfig, B: int, T: int, recompute: int, precision: str = "float32", backend: str = "cpu"
) -> MemoryPlan:
    """All that training takes over B sequences of T tokens."""
    if isinstance(config, LlamaConfig):
        return Llama.plan_training(config, B, T, recompute, precision, backend)
    return GPT2.plan_training(config, B, T, recompute, precision, backend)
