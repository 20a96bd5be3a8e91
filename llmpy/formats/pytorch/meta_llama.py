"""Llama under the names that Meta gave its tensors: its own `consolidated.*.pth` and llama2.c's training `ckpt.pt`.

Meta's folder has params.json and one file for each of the machines that a model was split over: every file holds a
slice of each matrix, along the rows or the columns. llama2.c's file holds the model, its sizes in `model_args`, and the
state of the optimizer, which is not read. Both are read by pytorch_files.py, which runs nothing that is in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.formats.huggingface.folder import read_json
from llmpy.formats.pytorch.checkpoint import read_torch_file
from llmpy.formats.tensor_map import Part, checked_config, parts, read_parts, store_parts
from llmpy.models.config import RopeScaling
from llmpy.models.inference_weights import Copy, StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters
from llmpy.quant.types import F32, PLAIN, quantize_into

PARAMS, FIRST_SHARD = "params.json", "consolidated.00.pth"
NAMES = {
    "model.embed_tokens.": "tok_embeddings.",
    "model.norm.": "norm.",
    "lm_head.": "output.",
    "model.layers.": "layers.",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
_COMPILED = "_orig_mod."  # what torch.compile puts before every name
_CONTEXT = 2048  # params.json does not say; it is what llama2.c's export takes
_OF_A_LAYER = re.compile(r"layers\.\d+\..*(?<!rope\.freqs)")  # the frequencies are constants that old files carry along
Shards = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class MetaModel:
    """A model whose tensors lie in files: `config`, and for every part the slices of it, in order."""

    path: Path
    config: LlamaConfig
    slices: dict[str, list[np.ndarray]]

    def read(self) -> tuple[LlamaConfig, Parameters]:
        """The model as float32."""
        return self.config, read_parts(self.config, self.tensor, interleaved=True)

    def stored(self) -> StoredWeights:
        """The model as it lies in the files, each matrix put together where it was split."""
        return store_parts(self.path, self.config, self._stored)

    def _stored(self, part: Part) -> np.ndarray | Copy:
        slices = self.slices[part.renamed(NAMES)]
        if slices[0].shape == part.shape:
            return slices[0]
        kind, (OC, C) = PLAIN.get(slices[0].dtype, F32), part.shape
        return Copy(kind, (OC, C), lambda data: quantize_into(data, kind, _joined(slices, part.shape)))

    def tensor(self, part: Part) -> np.ndarray:
        """One part, put together from its slices."""
        return _joined(self.slices[part.renamed(NAMES)], part.shape)


def open_checkpoint(path: Path) -> MetaModel:
    """llama2.c's ckpt.pt. Raises UserError where it holds no such model."""
    whole = read_torch_file(path)
    if not isinstance(whole, dict) or not isinstance(whole.get("model"), dict):
        raise UserError(f"{path} is a PyTorch file, but no checkpoint of llama2.c: it has no model in it")
    arguments = whole.get("model_args")
    if not isinstance(arguments, dict):
        raise UserError(f"{path}: it has no model_args, which say the sizes of a model of llama2.c")
    tensors = _tensors(whole["model"], path)
    config = _config(arguments, [tensors], str(path), arguments.get("max_seq_len", 2048))
    return _checked(path, config, [tensors])


def open_folder(folder: Path) -> MetaModel:
    """Meta's params.json and consolidated.*.pth. Raises UserError for what is missing or amiss."""
    params = read_json(folder / PARAMS)
    paths = sorted(folder.glob("consolidated.*.pth"))
    numbers = [path.name.split(".")[1] for path in paths]
    if numbers != [f"{i:02}" for i in range(len(paths))] or not paths:
        raise UserError(f"{folder}: its files are {', '.join(path.name for path in paths)[:200]}: one is missing")
    shards = [_tensors(read_torch_file(path), path) for path in paths]
    return _checked(folder, _config(params, shards, str(folder / PARAMS), _CONTEXT), shards)


def _tensors(whole: Any, path: Path) -> dict[str, np.ndarray]:
    """The tensors of a model by name, without what PyTorch puts before it."""
    if not isinstance(whole, dict):
        raise UserError(f"{path} is a PyTorch file, but no model: a {type(whole).__name__}")
    tensors = {}
    for name, tensor in whole.items():
        if isinstance(name, str) and isinstance(tensor, np.ndarray) and tensor.dtype.kind in "fV":
            tensors[name.removeprefix(_COMPILED)] = tensor
    if "tok_embeddings.weight" not in tensors or tensors["tok_embeddings.weight"].ndim != 2:
        raise UserError(f"{path} is a PyTorch file, but no Llama: it has no tok_embeddings.weight")
    return tensors


def _config(params: dict[str, Any], shards: Shards, where: str, context: Any) -> LlamaConfig:
    """The shape, from params.json or model_args and, for what they leave out, from the tensors."""
    embedding, gate = (shards[0].get(name) for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"))
    if embedding is None or gate is None or gate.ndim != 2:
        raise UserError(f"{where}: the weights lack layers.0.feed_forward.w1.weight")
    dim, heads = params.get("dim"), params.get("n_heads")
    # A matrix of embeddings is split along its columns, from Llama 3 on along its rows.
    rows = sum(len(shard["tok_embeddings.weight"]) for shard in shards if "tok_embeddings.weight" in shard)
    vocab_size = rows if embedding.shape[1] == dim else len(embedding)
    tied = "output.weight" not in shards[0]
    if not tied and len(shards) == 1:
        tied = _same(shards[0]["output.weight"], embedding)
    return checked_config(
        where,
        vocab_size=vocab_size,
        context=context,
        layers=params.get("n_layers"),
        heads=heads,
        kv_heads=heads if params.get("n_kv_heads") is None else params["n_kv_heads"],
        channels=dim,
        hidden=len(gate) * len(shards),
        rope_theta=params.get("rope_theta", 10000.0),
        rope_scaling=_scaling(params, where),
        rope_interleaved=True,
        tied=tied,
        norm_eps=params.get("norm_eps", 1e-5),
    )


def _scaling(params: dict[str, Any], where: str) -> RopeScaling | None:
    """Llama 3.1's, where params.json asks for it; its numbers are in the code of the model."""
    if not params.get("use_scaled_rope"):
        return None
    names = {"rope_scaling_factor": "factor", "high_freq_factor": "high_freq_factor"}
    try:
        return RopeScaling(**{ours: params[name] for name, ours in names.items() if name in params})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """One tensor in the file under two names? (Equal numbers elsewhere in the file would have to be read.)"""
    return a.shape == b.shape and a.__array_interface__["data"] == b.__array_interface__["data"]


def _checked(path: Path, config: LlamaConfig, shards: Shards) -> MetaModel:
    """Every part is there, and its slices make up its shape; there are no tensors but these."""
    slices: dict[str, list[np.ndarray]] = {}
    for part in parts(config):
        name = part.renamed(NAMES)
        found = [shard[name] for shard in shards if name in shard]
        if len(found) != len(shards):
            raise UserError(f"{path}: the weights lack {name}, which its sizes ask for")
        if not _fits([piece.shape for piece in found], part.shape):
            raise UserError(f"{path}: {name} has shape {found[0].shape}, its sizes ask for {part.shape}")
        slices[name] = found
    for shard in shards:
        for name in shard:
            if _OF_A_LAYER.fullmatch(name) and name not in slices:
                raise UserError(f"{path} holds {name[:60]}, which no model has whose sizes are what these are")
    return MetaModel(path, config, slices)


def _fits(shapes: list[tuple[int, ...]], whole: tuple[int, ...]) -> bool:
    """Are these whole copies (norms), or equal slices along one axis?"""
    if len(set(shapes)) != 1 or len(shapes[0]) != len(whole):
        return False
    return (len(whole) == 1 and shapes[0] == whole) or _split_axis(shapes, whole) is not None


def _split_axis(shapes: list[tuple[int, ...]], whole: tuple[int, ...]) -> int | None:
    """The axis along which slices of these shapes make up the whole."""
    for axis in range(len(whole)):
        if tuple(n * len(shapes) if i == axis else n for i, n in enumerate(shapes[0])) == whole:
            return axis
    return None


def _joined(slices: list[np.ndarray], whole: tuple[int, ...]) -> np.ndarray:
    if slices[0].shape == whole:
        return slices[0]
    return np.concatenate(slices, axis=_split_axis([piece.shape for piece in slices], whole) or 0)
