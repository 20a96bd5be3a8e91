"""Conversion between file formats: models, tokenizers and token shards, each written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from llmpy.errors import UserError
from llmpy.formats import detect, llama2c
from llmpy.formats.chat_template_files import template_files, template_of
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface import hub
from llmpy.formats.llmc import model as llmc
from llmpy.formats.llmc.shards import open_shard, shard_info, write_shard
from llmpy.formats.load import LoadedModel, load_model
from llmpy.models.registry import family_of
from llmpy.tokenization.base import SentencePieceTokenizer, Tokenizer
from llmpy.utils.atomic_files import cannot_write, make_dir, sync_dir

TARGETS = ("llmc", "llama2c", "huggingface", "tokenizer", "shard")
MODEL_DTYPES = {"llmc": ("float32", "bfloat16"), "llama2c": ("float32", "q8_0"), "huggingface": ("float32", "bfloat16")}
_NAMES = {"llmc": "GPT-2 model of llm.c", "llama2c": "Llama of llama2.c", "huggingface": "Hugging Face folder"}
SHARD_DTYPES = {"uint16": 2**16, "uint32": 2**32}  # and the size of the vocabulary that fits


def convert(source: str, target: Path, to: str | None = None, dtype: str | None = None, force: bool = False) -> str:
    """Writes `source` to `target` in another format and returns a line that says what was written.

    `to` is one of TARGETS, by default what the kind of the source and the suffix of the target ask for; `dtype` that of
    a model's weights (default float32; q8_0 is version 2 of llama2.c's files) or of a shard's tokens. Raises UserError,
    with nothing written, for what does not go together and, unless `force`, for a target that exists.
    """
    path = Path(source).expanduser()
    kind = detect.detect(path) if path.exists() else None
    model = None
    to = to or _target_for(kind, target)
    if to is None:
        model = load_model(source)
        to = family_of(model.config).file_format
    _check_target(target, to, force)
    if to == "tokenizer":
        return _convert_tokenizer(source, path, kind, target)
    if to == "shard":
        return _convert_shard(path, kind, target, dtype)
    if dtype not in (None, *MODEL_DTYPES[to]):
        raise UserError(f"a model's --dtype is {' or '.join(MODEL_DTYPES[to])} for a {_NAMES[to]}, not {dtype}")
    model = model or load_model(source)
    _write_model(target, model, to, dtype or "float32")
    return f"{target}: {model.kind} as {_NAMES[to]}"


def _write_model(target: Path, model: LoadedModel, to: str, dtype: str) -> None:
    """Each format holds its own family; a Hugging Face folder holds either."""
    family = family_of(model.config)
    config: Any = model.config
    if to == "huggingface":
        _write_folder(target, model, dtype)
    elif to == family.file_format == "llama2c":
        llama2c.write_model(target, config, model.parameters, version=2 if dtype == "q8_0" else 0)
    elif to == family.file_format == "llmc":
        llmc.write_model(target, config, model.parameters, dtype)
    else:
        raise UserError(
            f"{model.source} is a {family.title}, which {_NAMES[to]} cannot be: give --to"
            f" {family.file_format} or huggingface"
        )


def _target_for(kind: str | None, target: Path) -> str | None:
    """Returns the target format; None if the model's family decides."""
    if kind == detect.SHARD:
        return "shard"
    if kind in detect.TOKENIZERS:
        return "tokenizer"
    if target.suffix == ".model":
        return "tokenizer"
    if target.suffix == ".bin":
        return None
    if target.suffix == "" or target.is_dir():
        return "huggingface"
    raise UserError(f"the name {target} does not say what to write: give --to {', '.join(TARGETS[:3])}")


def _check_target(target: Path, to: str, force: bool) -> None:
    is_folder = target.is_dir()
    if to == "huggingface" and target.exists() and not is_folder:
        raise UserError(f"{target} is a file, and a Hugging Face model is a folder: choose another name")
    if to != "huggingface" and is_folder:
        raise UserError(f"{target} is a folder: give the name of a file in it")
    if target.exists() and not force and not (is_folder and not any(target.iterdir())):
        raise UserError(f"{target} exists: choose another name, or --force to write over it")


def _convert_tokenizer(source: str, path: Path, kind: str | None, target: Path) -> str:
    if kind in detect.TOKENIZERS:
        tokenizer: Tokenizer | None = Tokenizer.load(path)
    elif kind is None and source in ("gpt2", "bytes"):
        tokenizer = Tokenizer.from_spec(source)
    else:
        model = load_model(source)
        tokenizer = model.tokenizer
        if target.suffix == ".bin" and family_of(model.config).file_format == "llama2c":
            _check_for_llama2c(source, tokenizer)
    if tokenizer is None:
        raise UserError(f"{source} has no tokenizer beside it")
    tokenizer.save(target)
    theirs = "llama2.c's" if isinstance(tokenizer, SentencePieceTokenizer) else "llm.c's"
    form = f" in {theirs} form" if target.suffix == ".bin" else ""
    return f"{target}: tokenizer {tokenizer.name}, {tokenizer.vocab_size} tokens{form}"


def _check_for_llama2c(source: str, tokenizer: Tokenizer | None) -> None:
    """Checks that a Llama's tokenizer can become a .bin of llama2.c: for a Llama, llm.c's format is not meant."""
    if tokenizer is not None and not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            f"{source} has the tokenizer {tokenizer.name}, and llama2.c's tokenizer.bin holds SentencePiece's: train "
            f"with --tokenizer sentencepiece:{tokenizer.vocab_size}, or save a tokenizer.json"
        )


def _convert_shard(path: Path, kind: str | None, target: Path, dtype: str | None) -> str:
    if kind != detect.SHARD:
        raise UserError(f"{path} is no shard of tokens")
    held = shard_info(path).dtype.name
    dtype = dtype or next(name for name in SHARD_DTYPES if name != held)
    if dtype not in SHARD_DTYPES:
        raise UserError(f"a shard's --dtype is {' or '.join(SHARD_DTYPES)}, not {dtype}")
    tokens = open_shard(path)
    if (largest := int(tokens.max())) >= SHARD_DTYPES[dtype]:
        raise UserError(f"{path} holds token {largest}, which {dtype} cannot: it stays {held}")
    write_shard(target, tokens, SHARD_DTYPES[dtype])
    return f"{target}: shard of {len(tokens)} tokens as {dtype}"


def _write_folder(target: Path, model: LoadedModel, dtype: str) -> None:
    """A Hugging Face folder, under a temporary name first; over an existing one, file by file."""
    # A tokenizer that would have to be downloaded is no part of the source.
    tokenizer = model.tokenizer if isinstance(model.tokenizer_source, Path) else None
    make_dir(target.parent)
    workshop = make_dir(target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"))
    try:
        ends, bos = (tokenizer.stop_ids, tokenizer.bos) if tokenizer else ((), None)
        huggingface.write_model(
            workshop, model.config, model.parameters, dtype, ends, bos, shard_bytes=huggingface.SHARD_BYTES
        )
        if tokenizer:
            tokenizer.save(workshop / hub.TOKENIZER)
        if template := template_of(model.source, model.tokenizer_source):
            for name, text in template_files(template).items():
                (workshop / name).write_text(text, encoding="utf-8")
        if target.exists():
            for name in (huggingface.WEIGHTS, huggingface.INDEX):  # not one's config with the other's weights
                if not (workshop / name).exists():
                    (target / name).unlink(missing_ok=True)
            for file in sorted(workshop.iterdir()):
                os.replace(file, target / file.name)
        else:
            os.rename(workshop, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    sync_dir(target.parent)
