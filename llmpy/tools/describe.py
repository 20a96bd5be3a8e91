"""Descriptions for `llmpy info`: format, sizes, and whether a file or folder is intact."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.formats import detect
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface import hub
from llmpy.formats.llmc import debug_state, shards
from llmpy.tokenization.base import Tokenizer
from llmpy.tools import describe_models as models
from llmpy.tools.describe_models import CHUNK, Description
from llmpy.training.config_file import read_toml
from llmpy.utils.atomic_files import sha256_of

FIRST_TOKENS = 24  # of a shard or a debug state, shown as text


def describe(path: Path, tokenizer: Tokenizer | None = None) -> Description:
    """Describe whatever is at `path`; `tokenizer` shows tokens as text where none lies beside them.

    Raises UserError, in the words of whoever reads such a file, where it is cut, damaged or of no kind that is read.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    kind = detect.detect(path)
    description = Description(str(path), kind)
    if path.is_file():
        description.facts["bytes"] = path.stat().st_size
    describers = {
        detect.RUN: _run,
        detect.FOLDER: models.folder,
        detect.DATA_FOLDER: _data_folder,
        detect.LLMC_MODEL: models.llmc_model,
        detect.LLAMA2C_MODEL: models.llama2c_model,
        detect.GGUF: models.gguf_file,
        detect.TORCH: models.torch_file,
        detect.META_FOLDER: models.meta_folder,
        detect.DEBUG_STATE: _debug_state,
        **dict.fromkeys(detect.TOKENIZERS, _tokenizer),
        detect.SHARD: _shard,
        detect.SAFETENSORS: models.safetensors,
        detect.TEXT: _text,
    }
    describers[kind](path, description, tokenizer)
    return description


# ---- runs ----------------------------------------------------------------------------------------------------------


def _run(path: Path, description: Description, tokenizer: Tokenizer | None) -> None:
    """Describes a run folder: checkpoints, last losses, and the model of the newest checkpoint."""
    steps = sorted(step for step in path.glob("step_*") if step.is_dir())
    complete = [step.name for step in steps if (step / detect.DONE).exists()]
    description.facts["checkpoints"] = complete or "none complete"
    if len(complete) < len(steps):
        description.facts["incomplete"] = [step.name for step in steps if step.name not in complete]
    description.facts |= _last_losses(path / "main.log")
    newest = detect.newest_step(path)
    if newest is not None:
        models.folder(newest, description, tokenizer)
    if (path / "config.toml").exists():
        try:
            settings = read_toml(path / "config.toml")
            description.facts["settings"] = {name: value for name, value in settings.items() if value is not None}
        except UserError as error:
            description.problems.append(str(error))


def _last_losses(log: Path) -> dict[str, Any]:
    """The newest of each figure in a main.log: "s:20 trl:3.2 lr:... norm:...", "s:20 tel:3.1", "s:20 eval:0.3"."""
    if not log.exists():
        return {}
    names = {"trl": "train_loss", "tel": "val_loss", "eval": "eval"}
    facts: dict[str, Any] = {}
    for step, name, value in re.findall(r"^s:(\d+) (trl|tel|eval):(\S+)", log.read_text("utf-8", "replace"), re.M):
        facts["last_step"] = int(step)
        facts[names[name]] = float(value)
    return facts


# ---- tokens and text -----------------------------------------------------------------------------------------------


def _shard(path: Path, description: Description, tokenizer: Tokenizer | None) -> None:
    info = shards.shard_info(path)
    tokens = shards.open_shard(path)
    largest = max(int(tokens[start : start + CHUNK].max()) for start in range(0, len(tokens), CHUNK))
    description.facts |= {"tokens": info.tokens, "dtype": info.dtype.name, "largest_token": largest}
    tokenizer = tokenizer or _tokenizer_beside(path)
    if tokenizer and largest >= tokenizer.vocab_size:
        description.problems.append(f"token {largest} is not in the vocabulary of {tokenizer.vocab_size} beside it")
    _first_tokens(tokens, tokenizer, description)


def _first_tokens(tokens: np.ndarray, tokenizer: Tokenizer | None, description: Description) -> None:
    first = tokens[:FIRST_TOKENS].tolist()
    description.facts["first_tokens"] = first
    if tokenizer and 0 <= min(first) and max(first) < tokenizer.vocab_size:
        description.facts["first_text"] = tokenizer.decode(first)


def _tokenizer_beside(path: Path) -> Tokenizer | None:
    for name in (hub.TOKENIZER, "gpt2_tokenizer.bin"):
        if (beside := path.with_name(name)).exists():
            return Tokenizer.load(beside)
    return None


def _data_folder(path: Path, description: Description, tokenizer: Tokenizer | None) -> None:
    """Each split with its shards; where a manifest has sealed them, whether they are what it says."""
    if (path / "manifest.json").exists():
        manifest = huggingface.read_json(path / "manifest.json")
        for name in ("title", "tokenizer_name", "vocab_size", "documents", "characters"):
            if name in manifest:
                description.facts[name] = manifest[name]
        sealed = manifest.get("files")
        for name, seal in sealed.items() if isinstance(sealed, dict) else ():
            file = path / name
            if not file.is_file() or seal != {"size": file.stat().st_size, "sha256": sha256_of(file)}:
                description.problems.append(f"{name} is missing or not what was written: prepare it again")
    first = None
    for split in ("train", "val", ""):
        files = [file for file in sorted(path.glob("*.bin")) if shards.is_shard(file) and _split_of(file) == split]
        if files:
            tokens = sum(shards.shard_info(file).tokens for file in files)
            name = f"{split}_tokens" if split else "tokens"
            description.facts |= {name: tokens, name.replace("tokens", "shards"): len(files)}
            first = first or files[0]
    if first is not None:
        inside = Description(str(first), detect.SHARD)
        _shard(first, inside, tokenizer)
        description.facts |= {name: value for name, value in inside.facts.items() if name.startswith("first_")}
        description.problems += [f"{first.name}: {problem}" for problem in inside.problems]


def _split_of(file: Path) -> str:
    return next((split for split in ("train", "val") if re.search(rf"(^|_){split}(_|$)", file.stem)), "")


def _tokenizer(path: Path, description: Description, _: Tokenizer | None) -> None:
    tokenizer = Tokenizer.load(path)
    description.facts |= {
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "longest_token": max((len(token) for token in tokenizer.tokens), default=0),
    }


def _debug_state(path: Path, description: Description, tokenizer: Tokenizer | None) -> None:
    B, T, _ = debug_state.read_debug_header(path)
    x, _ = debug_state.read_batch(path)
    description.facts |= {"batch_size": B, "sequence_length": T}
    _first_tokens(x[0], tokenizer, description)
    description.facts["to_compare"] = f"llmpy info MODEL.bin --check {path}"


def _text(path: Path, description: Description, _: Tokenizer | None) -> None:
    decoder, characters, lines, first = codecs.getincrementaldecoder("utf-8")(), 0, 0, ""
    with open(path, "rb") as file:
        try:
            while data := file.read(CHUNK):
                text = decoder.decode(data)
                characters, lines = characters + len(text), lines + text.count("\n")
                first = first or next((line.strip() for line in text.splitlines() if line.strip()), "")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            description.problems.append(f"it is not UTF-8 after character {characters}")
    description.facts |= {"characters": characters, "lines": lines, "first_line": first[:80]}


def to_json(description: Description) -> str:
    """One object: path, kind, sound, problems, the facts, and the tensors."""
    d = description
    whole = {"path": d.path, "kind": d.kind, "sound": not d.problems, "problems": d.problems, **d.facts}
    return json.dumps({**whole, "tensors": d.tensors}, indent=2, ensure_ascii=False, default=str)
