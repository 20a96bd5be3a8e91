"""GPT-2 in Hugging Face's form: a folder with config.json and model.safetensors, read and written.

The names and the transposed weights (there (in, out), here (out, in)) come from the table in parameters.py. What is
written here `transformers.GPT2LMHeadModel.from_pretrained` opens as it is. No pickle is ever opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llmpy.config import GPT2_VOCAB_SIZE, GPT2Config
from llmpy.errors import UserError
from llmpy.files import write_atomic, write_text_atomic
from llmpy.formats.safetensors import SafetensorsFile, TensorToWrite, write
from llmpy.models.gpt2 import plan_parameters
from llmpy.parameters import Parameters, gpt2_table

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PREFIX = "transformer."  # of GPT2LMHeadModel; files of GPT2Model, the hub's "gpt2" among them, have none
FLOATS = ("F32", "BF16", "F16")
WRITE_DTYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# What is built into our GPT-2, by the field that says so; another value describes another model.
FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_MASK = re.compile(r".*\.attn\.(masked_)?bias")  # a constant that old files carry along: the causal mask


# ---- reading -------------------------------------------------------------------------------------------------------


def read_model(folder: Path) -> tuple[GPT2Config, Parameters]:
    """The model in a folder, as float32. Raises UserError, before memory is taken, for what is missing or amiss."""
    config = read_config(folder)
    tensors = open_weights(folder, config)
    parameters = Parameters(gpt2_table(config), plan_parameters(config, training=False).take()["parameters"])
    _fill(parameters, tensors)
    return config, parameters


def read_parameters(folder: Path, config: GPT2Config, parameters: Parameters) -> None:
    """The weights in a folder into `parameters`, which are those of a model of shape `config`."""
    _fill(parameters, open_weights(folder, config))


def read_config(folder: Path) -> GPT2Config:
    """config.json -> the shape. Raises UserError naming the field that describes a model which cannot be run."""
    path = folder / CONFIG
    fields = read_json(path)
    if (model_type := fields.get("model_type")) != "gpt2":
        raise UserError(f'{path}: model_type is {json.dumps(model_type)}, and only "gpt2" can be run')
    for name, allowed in FIXED.items():
        if (value := fields.get(name, allowed[0])) not in allowed:
            raise UserError(f"{path}: {name} is {json.dumps(value)}, and only {json.dumps(allowed[0])} can be run")

    def size(name: str, default: int) -> int:
        value = fields.get(name, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise UserError(f"{path}: {name} must be a whole number of 1 or more, not {json.dumps(value)}")
        return value

    V, T = size("vocab_size", GPT2_VOCAB_SIZE), size("n_positions", 1024)
    L, NH, C = size("n_layer", 12), size("n_head", 12), size("n_embd", 768)
    if C % NH:
        raise UserError(f"{path}: n_embd {C} is not a multiple of n_head {NH}")
    if (inner := fields.get("n_inner")) not in (None, 4 * C):
        raise UserError(f"{path}: n_inner is {json.dumps(inner)}, and only 4 * n_embd = {4 * C} can be run")
    return GPT2Config(V, T, L, NH, C)


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


def open_weights(folder: Path, config: GPT2Config) -> dict[str, tuple[SafetensorsFile, str]]:
    """Every tensor's name without prefix -> (file, name in it). All are there and of the right shape; none is read."""
    files = open_files(folder)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in files) else ""
    found = {}
    for name, shape in _expected(config):
        foreign = prefix + name
        if foreign not in files:
            raise UserError(f"{folder}: the weights lack {foreign}, which {CONFIG} asks for")
        file, entry = files[foreign], files[foreign].entries[foreign]
        if entry.shape != shape:
            raise UserError(f"{file.path}: {foreign} has shape {entry.shape}, {CONFIG} asks for {shape}")
        if entry.dtype not in FLOATS:
            raise UserError(f"{file.path}: {foreign} is of type {entry.dtype}, readable are {', '.join(FLOATS)}")
        found[name] = (file, foreign)
    for foreign, file in files.items():
        name = foreign.removeprefix(prefix)
        if name.startswith("h.") and name not in found and not _MASK.fullmatch(name):
            raise UserError(f"{file.path} holds {foreign}, which no model has whose {CONFIG} says what this one does")
    _check_head(folder, files, found)
    return found


def _check_head(folder: Path, files: dict[str, SafetensorsFile], found: dict[str, tuple[SafetensorsFile, str]]) -> None:
    """Our head is the token embedding; a model with a head of its own is refused."""
    if read_json(folder / CONFIG).get("tie_word_embeddings", True):
        return
    head, (file, wte) = files.get("lm_head.weight"), found["wte.weight"]
    if head is None or not np.array_equal(head.tensor("lm_head.weight"), file.tensor(wte)):
        raise UserError(f"{folder / CONFIG}: tie_word_embeddings is false, and only a head that is wte can be run")


def _expected(config: GPT2Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name without prefix, shape) of every tensor that such a model has there."""
    for spec in gpt2_table(config):
        if not spec.per_layer:
            yield spec.huggingface, (spec.rows or spec.shape[0], *spec.shape[1:])
            continue
        shape = spec.shape[:0:-1] if spec.transposed else spec.shape[1:]
        for layer in range(config.layers):
            yield spec.huggingface.format(layer), shape


def _fill(parameters: Parameters, tensors: dict[str, tuple[SafetensorsFile, str]]) -> None:
    for name, view in named_views(parameters):
        file, foreign = tensors[name]
        view[...] = file.tensor(foreign)
    for spec, view in parameters.items():
        if spec.rows:
            view[spec.rows :] = 0


def named_views(parameters: Parameters) -> Iterator[tuple[str, np.ndarray]]:
    """(name without prefix, view) of every tensor as it is stored there: layer by layer, transposed, unpadded."""
    for spec, stacked in parameters.items():
        if not spec.per_layer:
            yield spec.huggingface, stacked[: spec.rows]
            continue
        for layer, view in enumerate(stacked):
            yield spec.huggingface.format(layer), view.T if spec.transposed else view


# ---- writing -------------------------------------------------------------------------------------------------------


def write_model(
    folder: Path, config: GPT2Config, parameters: Parameters, dtype: str = "float32", end_of_text: int | None = None
) -> None:
    """Writes config.json and model.safetensors into `folder` (made if missing), each whole or not at all.

    dtype: "float32" or "bfloat16". `end_of_text` is the id that ends a text, which `transformers` stops at.
    """
    target = WRITE_DTYPES[dtype]

    def tensor(name: str, view: np.ndarray) -> TensorToWrite:
        return TensorToWrite(PREFIX + name, target, view.shape, lambda: view.astype(target, order="C", copy=False))

    with write_atomic(folder / WEIGHTS) as file:
        write(file, (tensor(name, view) for name, view in named_views(parameters)), {"format": "pt"})
    write_text_atomic(folder / CONFIG, json.dumps(config_fields(config, dtype, end_of_text), indent=2) + "\n")


def config_fields(config: GPT2Config, dtype: str = "float32", end_of_text: int | None = None) -> dict[str, Any]:
    """The content of config.json. GPT-2's own vocabulary ends a text with its last id."""
    if end_of_text is None and config.vocab_size == GPT2_VOCAB_SIZE:
        end_of_text = GPT2_VOCAB_SIZE - 1
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_ctx": config.context,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_embd": config.channels,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
        "use_cache": True,
    }
