"""Models in Hugging Face's form: a folder with config.json and model.safetensors, read and written.

GPT-2 and the Llama family; what their config.json says is in gpt2.py and llama.py, the tensors'
names are those of the tables in parameters.py. What is written here `transformers` opens as it is. No pickle is ever
opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llmpy.errors import UserError
from llmpy.formats.huggingface import gpt2 as huggingface_gpt2
from llmpy.formats.huggingface import llama as huggingface_llama
from llmpy.formats.huggingface.safetensors import SafetensorsFile, TensorToWrite, write
from llmpy.formats.tensor_map import Part, parts, store_parts, take_parameters
from llmpy.models.config import ModelConfig
from llmpy.models.gpt2 import GPT2_VOCAB_SIZE
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.parameters import Parameters
from llmpy.utils.atomic_files import write_atomic, write_text_atomic

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PREFIX = "transformer."  # of GPT2LMHeadModel; files of GPT2Model, the hub's "gpt2" among them, have none
FLOATS = ("F32", "BF16", "F16")
WRITE_DTYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SHARD_BYTES = 5 * 10**9  # of one file of weights where others are to read them, as `transformers` once split them
# Constants that old files carry along: the causal mask of GPT-2, the frequencies of the rotations.
_CONSTANTS = re.compile(r".*\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq")
_FAMILIES: dict[str, Any] = {"gpt2": huggingface_gpt2, "llama": huggingface_llama}  # what says a family's config.json
Weights = dict[str, tuple[SafetensorsFile, str]]


# ---- reading -------------------------------------------------------------------------------------------------------


def read_model(folder: Path) -> tuple[ModelConfig, Parameters]:
    """The model in a folder, as float32. Raises UserError, before memory is taken, for what is missing or amiss."""
    config = read_config(folder)
    weights = open_weights(folder, config)
    parameters = take_parameters(config)
    _fill(parameters, config, weights)
    return config, parameters


def read_stored(folder: Path) -> StoredWeights:
    """The model as it lies in the files of a folder, q and k in their order. Raises UserError as `read_model`."""
    config = read_config(folder).with_rope_interleaved(False)
    weights = open_weights(folder, config)

    def read(part: Part) -> np.ndarray:
        file, foreign = weights[part.huggingface]
        return file.tensor(foreign)

    return store_parts(folder, config, read)


def read_parameters(folder: Path, config: ModelConfig, parameters: Parameters) -> None:
    """The weights in a folder into `parameters`, which are those of a model of shape `config`."""
    _fill(parameters, config, open_weights(folder, config))


def read_config(folder: Path) -> ModelConfig:
    """config.json -> the shape. Raises UserError naming the field that describes a model which cannot be run."""
    path = folder / CONFIG
    fields = read_json(path)
    model_type = fields.get("model_type")
    if model_type == "gpt2":
        return huggingface_gpt2.config_of(fields, path)
    if isinstance(model_type, str) and model_type in huggingface_llama.MODEL_TYPES:
        return huggingface_llama.config_of(fields, path)
    types = ", ".join(["gpt2", *huggingface_llama.MODEL_TYPES])
    raise UserError(f"{path}: model_type is {json.dumps(model_type)}, and only {types} can be run")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError where there is none."""
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: a model's folder holds {CONFIG} and {WEIGHTS}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    return fields


def open_files(folder: Path) -> dict[str, SafetensorsFile]:
    """Name of a tensor -> the file that holds it: model.safetensors, or one of the shards that an index names."""
    if (folder / WEIGHTS).exists():
        file = SafetensorsFile(folder / WEIGHTS)
        return dict.fromkeys(file.entries, file)
    if (folder / INDEX).exists():
        return _open_shards(folder)
    for path in sorted(folder.glob("*")):
        if path.suffix in (".bin", ".pt", ".pth"):
            raise UserError(f"{path} is a pickle, which can run any code and is not opened: save it as {WEIGHTS}")
    raise UserError(f"{folder} holds no {WEIGHTS}")


def _open_shards(folder: Path) -> dict[str, SafetensorsFile]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} is damaged: it has no weight_map")
    shards: dict[str, SafetensorsFile] = {}
    tensors = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise UserError(f"{folder / INDEX} is damaged: {shard!r} is not the name of a safetensors file")
        if shard not in shards:
            shards[shard] = SafetensorsFile(folder / shard)
        if name not in shards[shard].entries:
            raise UserError(f"{folder / shard} lacks {name}, which {INDEX} says it holds: is the download complete?")
        tensors[name] = shards[shard]
    return tensors


def open_weights(folder: Path, config: ModelConfig) -> Weights:
    """Every part's name -> (file, name in it). All are there and of the right shape; none is read."""
    files = open_files(folder)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in files) else ""
    found = {}
    for part in parts(config):
        foreign = _with_prefix(prefix, part.huggingface)
        if foreign not in files:
            raise UserError(f"{folder}: the weights lack {foreign}, which {CONFIG} asks for")
        file, entry = files[foreign], files[foreign].entries[foreign]
        if entry.shape != part.shape:
            raise UserError(f"{file.path}: {foreign} has shape {entry.shape}, {CONFIG} asks for {part.shape}")
        if entry.dtype not in FLOATS:
            raise UserError(f"{file.path}: {foreign} is of type {entry.dtype}, readable are {', '.join(FLOATS)}")
        found[part.huggingface] = (file, foreign)
    for foreign, file in files.items():
        name = foreign.removeprefix(prefix)
        if name.startswith(("h.", "model.")) and name not in found and not _CONSTANTS.fullmatch(name):
            raise UserError(f"{file.path} holds {foreign}, which no model has whose {CONFIG} says what this one does")
    return found


def _with_prefix(prefix: str, name: str) -> str:
    """The name of a tensor in a file; the head lies outside of the module that the prefix names."""
    return name if name.startswith("lm_head.") else prefix + name


def _fill(parameters: Parameters, config: ModelConfig, weights: Weights) -> None:
    for part in parts(config):
        file, foreign = weights[part.huggingface]
        part.fill(parameters, config, file.tensor(foreign), interleaved=False)
    for spec, view in parameters.items():
        if spec.rows:
            view[spec.rows :] = 0


# ---- writing -------------------------------------------------------------------------------------------------------


def write_model(
    folder: Path,
    config: ModelConfig,
    parameters: Parameters,
    dtype: str = "float32",
    end_of_text: int | Sequence[int] | None = None,
    bos: int | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes config.json and model.safetensors into `folder` (made if missing), each whole or not at all.

    dtype: "float32" or "bfloat16". `end_of_text` is the id that ends a text, or several, which `transformers` stops at,
    `bos` the one that begins it, by default the same. With `shard_bytes`, weights of more than that go into several
    files with an index, which is written after them.
    """
    target = WRITE_DTYPES[dtype]
    prefix = PREFIX if config.family == "gpt2" else ""

    def tensor(part: Part) -> TensorToWrite:
        def make() -> np.ndarray:
            return part.stored(parameters, config, interleaved=False).astype(target, order="C", copy=False)

        return TensorToWrite(_with_prefix(prefix, part.huggingface), target, part.shape, make)

    shards = _shards([tensor(part) for part in parts(config)], shard_bytes)
    for name, tensors in shards.items():
        with write_atomic(folder / name) as file:
            write(file, tensors, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
        size = sum(tensor.bytes for tensors in shards.values() for tensor in tensors)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_text_atomic(folder / INDEX, json.dumps(index, indent=2) + "\n")
    write_text_atomic(folder / CONFIG, json.dumps(config_fields(config, dtype, end_of_text, bos), indent=2) + "\n")


def _shards(tensors: list[TensorToWrite], limit: int | None) -> dict[str, list[TensorToWrite]]:
    """File name -> its tensors, in order, each file as large as `limit` allows (a tensor is never cut)."""
    groups: list[list[TensorToWrite]] = [[]]
    size = 0
    for tensor in tensors:
        if limit is not None and groups[-1] and size + tensor.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.bytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def config_fields(
    config: ModelConfig,
    dtype: str = "float32",
    end_of_text: int | Sequence[int] | None = None,
    bos: int | None = None,
) -> dict[str, Any]:
    """The content of config.json. GPT-2's own vocabulary ends a text with its last id."""
    if end_of_text is None and config.vocab_size == GPT2_VOCAB_SIZE:
        end_of_text = GPT2_VOCAB_SIZE - 1
    ends = [end_of_text] if isinstance(end_of_text, int) else list(end_of_text or [])
    fields: dict[str, Any] = _FAMILIES[config.family].fields_of(config)
    return fields | {
        "bos_token_id": bos if bos is not None or not ends else ends[0],
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
        "torch_dtype": dtype,
        "use_cache": True,
    }
