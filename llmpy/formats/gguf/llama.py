"""The Llama in a GGUF file: its shape from the metadata, its parameters from the tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.formats.gguf.file import GGUFFile, StoredTensor
from llmpy.formats.tensor_map import Part, checked_config, parts, store_parts, take_parameters
from llmpy.models.config import RopeScaling
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters
from llmpy.quant.matrix import Matrix
from llmpy.quant.types import dequantize_into
from llmpy.utils.progress_bar import bar

# Architecture -> are the channels that rotate together neighbours? llama.cpp reorders those of its "llama".
ARCHITECTURES = {"llama": True, "qwen2": False}
# Words in Hugging Face's names of a part, and in GGUF's.
NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ROPE_FACTORS = "rope_freqs.weight"
# What Llama 3.1 and 3.2 have; the file keeps only the factors that come of it.
_LLAMA3_SCALING: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}


def read_config(file: GGUFFile) -> LlamaConfig:
    """The shape of the model. Raises UserError naming what cannot be run."""
    metadata, where = file.metadata, str(file.path)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"{where}: its architecture is {str(architecture)[:40]!r}, and only {', '.join(ARCHITECTURES)} can be run"
        )

    def entry(name: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{name}", default)
        if value is None or not isinstance(value, int | float | str):
            raise UserError(f"{where}: {architecture}.{name} is missing or no single value")
        return value

    if entry("expert_count", 0):
        raise UserError(f"{where}: a mixture of experts, which cannot be run")
    if entry("rope.scaling.type", "none") != "none":
        raise UserError(f"{where}: rope.scaling.type is {entry('rope.scaling.type')!r}, which cannot be run")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{where}: it lacks token_embd.weight")
    sizes = {
        "vocab_size": embedding.shape[0],
        "context": entry("context_length"),
        "layers": entry("block_count"),
        "heads": entry("attention.head_count"),
        "kv_heads": entry("attention.head_count_kv", entry("attention.head_count")),
        "channels": entry("embedding_length"),
        "hidden": entry("feed_forward_length"),
    }
    if f"{architecture}.attention.key_length" in metadata:
        sizes["head_size"] = entry("attention.key_length")
    config = checked_config(
        where,
        **sizes,
        rope_theta=_shortest(entry("rope.freq_base", 10000.0)),
        rope_interleaved=ARCHITECTURES[architecture],
        tied="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        norm_eps=_shortest(entry("attention.layer_norm_rms_epsilon")),
    )
    if entry("rope.dimension_count", config.head_size) != config.head_size:
        raise UserError(f"{where}: positions rotate {entry('rope.dimension_count')} of {config.head_size} channels")
    return replace(config, rope_scaling=_scaling(file, config))


def _shortest(value: Any) -> Any:
    """1e-05 as float32 -> 1e-05, where float64 would show 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _scaling(file: GGUFFile, config: LlamaConfig) -> RopeScaling | None:
    """Returns Llama 3's RoPE scaling from the stored frequency divisors, one for each pair of channels.

    Raises UserError for any other scaling.
    """
    tensor = file.tensors.get(_ROPE_FACTORS)
    if tensor is None:
        return None
    factors = tensor.dequantize()
    if factors.shape != (config.head_size // 2,) or not np.isfinite(factors).all():
        raise UserError(f"{file.path}: {_ROPE_FACTORS} has shape {tensor.shape}, or no numbers")
    if (factors == 1).all():
        return None
    if factors.max() > 1:
        scaling = RopeScaling(factor=_shortest(float(factors.max())), **_LLAMA3_SCALING)
        if np.allclose(factors, rope_factors(config, scaling), rtol=1e-3):
            return scaling
    raise UserError(f"{file.path}: {_ROPE_FACTORS} are not those of Llama 3, and cannot be run")


def rope_factors(config: LlamaConfig, scaling: RopeScaling) -> np.ndarray:
    """Returns the divisors [hs/2] that Llama 3.1 applies to the frequency of each pair of channels.

    A divisor is 1 for a pair that rotates often within the original context, `factor` for one that does not complete a
    rotation, and a blend in between.
    """
    turns = config.rope_theta ** (-np.arange(0, config.head_size, 2) / config.head_size)
    turns *= scaling.original_context / (2 * np.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1)
    return 1 / (kept + (1 - kept) / scaling.factor)


def open_weights(file: GGUFFile, config: LlamaConfig) -> dict[str, StoredTensor]:
    """Every part's name -> its tensor. All are there and of the right shape, and there are no others."""
    found = {}
    for part in parts(config):
        name = part.renamed(NAMES)
        tensor = file.tensors.get(name)
        if tensor is None:
            raise UserError(f"{file.path}: it lacks {name}, which its metadata asks for")
        if tensor.shape != part.shape:
            raise UserError(f"{file.path}: {name} has shape {tensor.shape}, its metadata asks for {part.shape}")
        found[name] = tensor
    if others := sorted(file.tensors.keys() - found.keys() - {_ROPE_FACTORS}):
        raise UserError(f"{file.path} holds {others[0][:60]}, which no model has whose metadata say what these do")
    return found


def read_stored(path: Path) -> StoredWeights:
    """The model in a file as it lies there. Raises UserError for what is missing or amiss."""
    file = GGUFFile(path)
    config = read_config(file)
    weights = open_weights(file, config)

    def read(part: Part) -> np.ndarray | Matrix:
        tensor = weights[part.renamed(NAMES)]
        if len(tensor.shape) == 1:
            return tensor.dequantize()
        return Matrix(tensor.kind, (tensor.shape[0], tensor.shape[1]), tensor.data, mapped=True)

    return store_parts(path, config, read)


def read_model(path: Path) -> tuple[LlamaConfig, Parameters]:
    """The model in a file, as float32. Raises UserError, before memory is taken, for what is missing or amiss."""
    file = GGUFFile(path)
    config = read_config(file)
    weights = open_weights(file, config)
    parameters = take_parameters(config)
    with bar(f"reading {path.name}", sum(tensor.data.nbytes for tensor in weights.values()), "B") as progress:
        for part in parts(config):
            tensor = weights[part.renamed(NAMES)]
            dequantize_into(part.of(parameters), tensor.kind, tensor.data)
            progress.advance(tensor.data.nbytes)
    return config, parameters
