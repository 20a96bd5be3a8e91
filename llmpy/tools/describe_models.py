"""Descriptions of models for `llmpy info`: sizes, tensors, and whether all elements are finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.formats import detect, llama2c, run_folder
from llmpy.formats.gguf import llama as gguf_llama
from llmpy.formats.gguf.file import GGUFFile
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface.safetensors import SafetensorsFile
from llmpy.formats.llmc import model as llmc
from llmpy.formats.load import find_tokenizer, load_tokenizer
from llmpy.formats.pytorch import checkpoint as pytorch_files
from llmpy.formats.pytorch import meta_llama
from llmpy.formats.tensor_map import parts
from llmpy.models.config import ModelConfig
from llmpy.models.gpt2 import gpt2_table
from llmpy.models.parameters import total_size
from llmpy.models.registry import family_of
from llmpy.tokenization.base import Tokenizer
from llmpy.utils.progress_bar import bar

CHUNK = 4 * 2**20  # numbers looked at in one go
NamedTensor = tuple[str, str, np.ndarray]  # name, type in the file, the tensor's numbers


@dataclass
class Description:
    """`facts` by name, in the order to be shown; `problems` is empty where the thing is sound."""

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)


def llmc_model(path: Path, description: Description, _: Tokenizer | None) -> None:
    header = llmc.read_model_header(path)
    description.facts |= {"dtype": header.dtype, **_sizes(header.config)}
    _tokenizer_of(path, header.config, description)
    flat = np.memmap(path, llmc.DTYPES[header.dtype], "r", llmc.HEADER_BYTES).view(np.ndarray)

    def tensors() -> Iterator[NamedTensor]:
        start = 0
        for spec in gpt2_table(header.config):
            yield spec.name, header.dtype, flat[start : start + spec.size].reshape(spec.shape)
            start += spec.size

    _look_at(tensors(), flat.nbytes, description)


def llama2c_model(path: Path, description: Description, _: Tokenizer | None) -> None:
    file = llama2c.Llama2cFile(path)
    description.facts |= {"version": file.version, "dtype": "8 bits" if file.header.group_size else "float32"}
    if file.header.group_size:
        description.facts["group_size"] = file.header.group_size
    description.facts |= _sizes(file.config)
    _tokenizer_of(path, file.config, description)

    def tensors() -> Iterator[NamedTensor]:
        for part in parts(file.config):
            stored = file.stored(part)
            quantized = isinstance(stored, llama2c.Q8Tensor)
            yield part.huggingface, "Q8_0" if quantized else "float32", llama2c.as_float32(stored)

    _look_at(tensors(), 4 * total_size(file.config.parameter_table()), description)


def gguf_file(path: Path, description: Description, _: Tokenizer | None) -> None:
    """Describes any GGUF with readable tensor types, and tells whether its model can run."""
    file = GGUFFile(path)
    for name in ("architecture", "name"):
        if (value := file.metadata.get(f"general.{name}")) is not None:
            description.facts[name] = value
    kinds = [tensor.kind.name for tensor in file.tensors.values()]
    description.facts["types"] = [f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))]
    try:
        config = gguf_llama.read_config(file)
        gguf_llama.open_weights(file, config)
        description.facts |= _sizes(config)
        _tokenizer_of(path, config, description)
    except UserError as error:
        description.facts["cannot_be_run"] = str(error)
    if file.chat_template is not None:
        description.facts["chat_template"] = f"{len(file.chat_template)} characters"
    tensors = ((tensor.name, tensor.kind.name, tensor.dequantize()) for tensor in file.tensors.values())
    _look_at(tensors, 4 * sum(prod(tensor.shape) for tensor in file.tensors.values()), description)


def torch_file(path: Path, description: Description, _: Tokenizer | None) -> None:
    """Describes any torch.save file with plain data; also the model, if it is one of llama2.c."""
    whole = pytorch_files.read_torch_file(path)
    try:
        config = meta_llama.open_checkpoint(path).config
        description.facts |= {name: float(whole[name]) for name in ("iter_num", "best_val_loss") if name in whole}
        description.facts |= _sizes(config)
        _tokenizer_of(path, config, description)
    except UserError as error:
        description.facts["cannot_be_run"] = str(error)
    found = [(name, array) for name, array in _arrays("", whole, 0) if array.dtype.kind in "fV"]
    _look_at(((name, array.dtype.name, array) for name, array in found), sum(a.nbytes for _, a in found), description)


def _arrays(name: str, value: Any, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in nested dicts, named by their keys. Only a damaged file nests deeply, or in itself."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, dict) and depth < 4:
        for key, inner in value.items():
            yield from _arrays(f"{name}.{key}".removeprefix("."), inner, depth + 1)


def meta_folder(path: Path, description: Description, _: Tokenizer | None) -> None:
    model = meta_llama.open_folder(path)
    description.facts |= {"files": len(next(iter(model.slices.values()))), **_sizes(model.config)}
    _tokenizer_of(path, model.config, description)
    tensors = ((part.renamed(meta_llama.NAMES), model.tensor(part)) for part in parts(model.config))
    size = sum(piece.nbytes for slices in model.slices.values() for piece in slices)
    _look_at(((name, tensor.dtype.name, tensor) for name, tensor in tensors), size, description)


def folder(path: Path, description: Description, _: Tokenizer | None) -> None:
    config = huggingface.read_config(path)
    found = huggingface.open_weights(path, config)
    description.facts |= _sizes(config)
    _tokenizer_of(path, config, description)
    if path.name.startswith("step_") and not (path / detect.DONE).exists():
        description.problems.append(f"not complete: there is no {detect.DONE} in it")
    for name in run_folder.damaged_files(path):
        description.problems.append(f"{path / name} is damaged: its checksum is not that of what was written")
    size = sum(file.entries[name].stop - file.entries[name].start for file, name in found.values())
    _look_at(((name, file.entries[name].dtype, file.tensor(name)) for file, name in found.values()), size, description)


def safetensors(path: Path, description: Description, tokenizer: Tokenizer | None) -> None:
    """A file of any tensors; with a config.json beside it, a model."""
    if path.name == huggingface.WEIGHTS and (path.parent / huggingface.CONFIG).exists():
        folder(path.parent, description, tokenizer)
        return
    file = SafetensorsFile(path)
    description.facts |= {"numbers": sum(prod(entry.shape) for entry in file.entries.values()), **file.metadata}
    tensors = ((entry.name, entry.dtype, file.tensor(entry.name)) for entry in file.entries.values())
    _look_at(tensors, file.size, description)


def _sizes(config: ModelConfig) -> dict[str, Any]:
    table = config.parameter_table()
    padding = sum((spec.shape[0] - spec.rows) * prod(spec.shape[1:]) for spec in table if spec.rows)
    return {
        "parameters": total_size(table) - padding,
        "layers": config.layers,
        "heads": config.heads,
        "channels": config.channels,
        "context": config.context,
        "vocab_size": config.vocab_size,
        **(_sizes_of_llama(config) if family_of(config).sizes else {}),
    }


def _sizes_of_llama(config: Any) -> dict[str, Any]:
    scaling = config.rope_scaling
    return {
        "kv_heads": config.kv_heads,
        "head_size": config.head_size,
        "hidden": config.hidden,
        "rope_theta": config.rope_theta,
        **({"rope_scaling": f"{scaling.factor:g} times {scaling.original_context} positions"} if scaling else {}),
        "norm_eps": config.norm_eps,
        "head": "the embedding" if config.tied else "its own",
        **({"qkv_bias": True} if config.qkv_bias else {}),
    }


def _tokenizer_of(path: Path, config: ModelConfig, description: Description) -> None:
    """Adds the place of the tokenizer; a tokenizer with more tokens than the model does not belong to it."""
    source = find_tokenizer(path, config)
    description.facts["tokenizer"] = "none beside it" if source is None else str(source)
    if isinstance(source, Path) and (size := load_tokenizer(source).vocab_size) > config.vocab_size:
        description.problems.append(f"{source} has {size} tokens, the model a vocabulary of {config.vocab_size}")


def _look_at(tensors: Iterator[NamedTensor], size: int, description: Description) -> None:
    """Every number once: the table of tensors, and a problem for each tensor with numbers that are not finite."""
    # A NaN of the signalling kind would warn at every step, where it is counted.
    with bar("reading", size, "B") as progress, np.errstate(all="ignore"):
        for name, dtype, tensor in tensors:
            count, total, squares, bad = tensor.size, 0.0, 0.0, 0
            flat = tensor.reshape(-1)
            for start in range(0, count, CHUNK):
                part = flat[start : start + CHUNK].astype(np.float64)
                finite = np.isfinite(part)
                if not finite.all():
                    bad += int((~finite).sum())
                    part = part[finite]
                total += float(part.sum())
                squares += float(np.dot(part, part))
                progress.advance(flat[start : start + CHUNK].nbytes)
            mean = total / max(count - bad, 1)
            std = max(squares / max(count - bad, 1) - mean * mean, 0.0) ** 0.5
            description.tensors.append(
                {"name": name, "dtype": dtype, "shape": list(tensor.shape), "numbers": count, "mean": mean, "std": std}
            )
            if bad:
                description.problems.append(f"{bad} of the {count} numbers of {name} are infinite or not a number")
