"""The models: each a table of parameters, a forward and a backward pass, written over the kernel contract.

Which of them a config describes is decided here and nowhere else.
"""

from __future__ import annotations

from llmpy.config import LlamaConfig, ModelConfig
from llmpy.memory import MemoryPlan
from llmpy.models.decoder import Decoder
from llmpy.models.gpt2 import GPT2
from llmpy.models.gpt2_decode import GPT2Decoder
from llmpy.models.llama import Llama
from llmpy.models.llama_decode import LlamaDecoder
from llmpy.models.transformer import Weights
from llmpy.parameters import Parameters

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
    config: ModelConfig,
    parameters: Parameters,
    backend: str = "cpu",
    sequences: int = 1,
    weights: Weights | None = None,
    context: int | None = None,
) -> Decoder:
    """What generates with these parameters, `sequences` texts at a time; `weights`, a model's, say the precision."""
    if isinstance(config, LlamaConfig):
        return LlamaDecoder(config, parameters, backend, sequences, weights, context)
    return GPT2Decoder(config, parameters, backend, sequences, weights, context)


def plan_training(
    config: ModelConfig, B: int, T: int, recompute: int, precision: str = "float32", backend: str = "cpu"
) -> MemoryPlan:
    """All that training takes over B sequences of T tokens."""
    if isinstance(config, LlamaConfig):
        return Llama.plan_training(config, B, T, recompute, precision, backend)
    return GPT2.plan_training(config, B, T, recompute, precision, backend)
