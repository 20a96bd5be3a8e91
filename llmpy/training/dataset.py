"""Opens the data of a run: token shards, or a text that is tokenized into shards; and the validation data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmpy.data.dataloader import DataLoader
from llmpy.data.prepare import DEFAULT_VOCABULARY, check_seals, prepare
from llmpy.errors import UserError
from llmpy.formats.huggingface.hub import TOKENIZER
from llmpy.formats.llmc.shards import dtype_for, is_shard, shard_files, shard_info
from llmpy.formats.load import LoadedModel
from llmpy.formats.open_tokenizer import open_tokenizer
from llmpy.models.gpt2 import GPT2_VOCAB_SIZE
from llmpy.models.presets import family_of_descriptor
from llmpy.tokenization.base import Tokenizer
from llmpy.tokenization.training import is_trained
from llmpy.training.config import TrainConfig


@dataclass
class TokenData:
    """Training shards, validation shards, and the vocabulary of their tokens."""

    train: list[Path]
    val: list[Path]
    tokenizer: Tokenizer | None
    tokenizer_spec: str | None  # the value of --tokenizer that opens the same tokenizer
    vocab_size: int
    fingerprint: list[str]  # changes with the training data


def open_data(config: TrainConfig, initial: LoadedModel | None = None) -> TokenData:
    """Opens token shards, or tokenizes a text into shards; `initial` (a model to start from) brings its tokenizer."""
    if (files := _shards(config.data, "train")) is not None:
        if config.val_fraction is not None:
            raise UserError(f"--val-fraction: {config.data} holds tokens already, and has been split: leave it out")
        data = _of_shards(config, files, initial)
    else:
        data = _of_text(config, initial)
    seals = check_seals(data.train)
    check_seals(data.val)
    data.fingerprint = [seal or str(shard_info(path).tokens) for path, seal in zip(data.train, seals, strict=True)]
    return data


def _shards(source: str, split: str) -> list[Path] | None:
    """Returns the shards that `source` names (in a folder: those of the split), or None if `source` names no shards."""
    path = Path(source)
    if path.is_dir():
        shards = sorted(file for file in path.glob("*.bin") if is_shard(file))
        named = [file for file in shards if re.search(rf"_{split}(_\d+)?\.bin$", file.name)]
        return named or shards or None
    return shard_files(source) if path.suffix == ".bin" else None


def _of_shards(config: TrainConfig, train: list[Path], initial: LoadedModel | None) -> TokenData:
    spec = config.tokenizer
    if spec is not None and is_trained(spec):
        raise UserError(f"--tokenizer {spec}: {config.data} holds tokens already, and none can be trained on them")
    if spec is None and (beside := train[0].parent / TOKENIZER).exists():
        spec = str(beside)
    if spec is None and initial is not None and initial.tokenizer_source is not None:
        spec = str(initial.tokenizer_source)
    if spec is None and dtype_for(GPT2_VOCAB_SIZE) == shard_info(train[0]).dtype:
        spec = "gpt2"  # llm.c's shards have no tokenizer file
    if spec is None:
        raise UserError(f"{config.data} says nothing of its tokenizer: give --tokenizer")
    try:
        tokenizer = open_tokenizer(spec)
    except UserError:
        if spec != "gpt2":
            raise
        tokenizer = None  # without a network the run trains, but cannot decode its samples
    vocab_size = tokenizer.vocab_size if tokenizer else GPT2_VOCAB_SIZE
    val: list[Path] = []
    if config.val_data is not None:
        val = _validation_files(config.val_data, spec)
    elif Path(config.data).is_dir():
        val = [file for file in _shards(config.data, "val") or [] if file not in train]
    return TokenData(train, val, tokenizer, spec, vocab_size, [])


def _of_text(config: TrainConfig, initial: LoadedModel | None) -> TokenData:
    """Tokenizes a text; without --val-data a part of the text is held out for validation."""
    spec = config.tokenizer
    if spec is None and initial is not None:
        if initial.tokenizer_source is None:
            raise UserError(f"{config.init} has no tokenizer beside it: give --tokenizer, the one it was made with")
        spec = str(initial.tokenizer_source)
    if spec is None:
        kind = family_of_descriptor(config.model).tokenizer
        spec = f"{kind}:{config.vocab_size or DEFAULT_VOCABULARY}"
    data = prepare(config.data, spec, val_fraction=config.val_fraction)
    train, val = shard_files(data.train), shard_files(data.val)
    if config.val_data is not None:
        train, val = train + val, _validation_files(config.val_data, str(data.tokenizer))
    return TokenData(train, val, Tokenizer.load(data.tokenizer), spec, data.vocab_size, [])


def _validation_files(source: str, tokenizer: str) -> list[Path]:
    """Returns all shards of --val-data, tokenized like the training data."""
    if (files := _shards(source, "val")) is not None:
        return files
    data = prepare(source, tokenizer)
    return shard_files(data.train) + shard_files(data.val)


def validation_loader(files: Sequence[Path], B: int, T: int, vocab_size: int) -> DataLoader | None:
    """Returns a loader of at most B sequences per batch, fewer for short files; None if no file has one sequence."""
    most = max((shard_info(path).tokens for path in files), default=0)
    fit = min(B, (most - 1) // T)
    return DataLoader(files, fit, T, shuffle=False, vocab_size=vocab_size) if fit > 0 else None
