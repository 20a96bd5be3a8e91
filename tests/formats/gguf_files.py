"""GGUF files written with the official library: the other side of the tests of these files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llmpy.formats.tensor_map import parts
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters

QUANTS = gguf.GGMLQuantizationType
HALVES = {QUANTS.Q4_K: (0, 2), QUANTS.Q6_K: (208,)}  # where a block has its float16


def names(layers: int = 3) -> dict[str, str]:
    """Hugging Face's name of a tensor -> GGUF's, as the library has it."""
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    return {key: value for key, (_, value) in mapping.mapping.items()}


def small_blocks(kind: QUANTS, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [..., bytes of a row] of numbers below 0.1"""
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(3)
    data = random.integers(0, 256, (*shape[:-1], shape[-1] // numbers, size), np.uint8)
    for at in HALVES[kind]:
        scales = random.uniform(1e-5, 2e-5, (*data.shape[:-1], 1)).astype(np.float16)
        data[..., at : at + 2] = scales.view(np.uint8)
    return data.reshape(*shape[:-1], -1)


def write_llama(
    path: Path,
    config: LlamaConfig,
    parameters: Parameters,
    kind: QUANTS = QUANTS.F32,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    layers: int = 3,
) -> Path:
    """The model, its matrices of type `kind`, all else float32; `metadata` (None: left out) and `tensors` are added.

    Of the types that the library can only read, the matrices hold other numbers, small ones.
    """
    architecture = "llama" if config.rope_interleaved else "qwen2"
    writer = gguf.GGUFWriter(path, architecture)
    entries: dict[str, Any] = {
        "context_length": config.context,
        "block_count": config.layers,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "embedding_length": config.channels,
        "feed_forward_length": config.hidden,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_theta,
        "attention.key_length": config.head_size,
    }
    for name, value in (entries | (metadata or {})).items():
        if value is None:
            continue
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](name if name.startswith("tokenizer.") else f"{architecture}.{name}", value)
    known = names(layers)
    found = {}
    for part in parts(config):
        stem, _, suffix = part.huggingface.rpartition(".")
        found[f"{known[stem]}.{suffix}"] = part.of(parameters)
    for name, array in (found | (tensors or {})).items():
        array = np.ascontiguousarray(array, np.float32)
        if kind == QUANTS.F32 or array.ndim == 1 or array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            writer.add_tensor(name, array)
        elif kind in HALVES:
            writer.add_tensor(name, small_blocks(kind, array.shape), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
