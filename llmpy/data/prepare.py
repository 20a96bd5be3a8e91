"""Prepares a folder of token shards from a corpus and a tokenizer; a second call with the same contents reuses them.

The folder holds `NAME_train*.bin`, `NAME_val*.bin`, `tokenizer.json` and, as the seal of a complete set,
`manifest.json` with the size and hash of each. It is made under another name and renamed, so that it is whole or not
there.
"""

import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.data.corpora import Corpus, open_corpus
from llmpy.data.text_files import Piece, Split
from llmpy.errors import UserError
from llmpy.formats.llmc.shards import SHARD_TOKENS, ShardWriter
from llmpy.formats.open_tokenizer import open_tokenizer
from llmpy.tokenization.base import Tokenizer
from llmpy.tokenization.training import is_trained, trained_size
from llmpy.utils import progress_bar
from llmpy.utils.atomic_files import cache_dir, cannot_write, make_dir, sha256_of, sync_dir, write_text_atomic

DEFAULT_SOURCE = "python-docs"
DEFAULT_VOCABULARY = 3072
DEFAULT_TOKENIZER = f"bpe:{DEFAULT_VOCABULARY}"
MANIFEST = "manifest.json"
MIN_CHARACTERS = 256
MIN_TOKENS = 2  # of each split: an input and a target
BATCH_CHARACTERS = 1 << 24  # encoded in one go, on all threads
TRAINING_CHARACTERS = 200_000_000  # as much of the text as a BPE is trained on
_FORMAT = 1  # raised when the same text would give other shards
_ABANDONED = 24 * 3600  # seconds after which a half-made folder is of a process that has died


@dataclass(frozen=True)
class PreparedData:
    """Paths and counts of a prepared data set. `train` and `val` are globs for `DataLoader`."""

    folder: Path
    name: str
    title: str
    tokenizer_name: str
    vocab_size: int
    documents: int
    characters: int
    train_tokens: int
    val_tokens: int
    train_files: tuple[str, ...]
    val_files: tuple[str, ...]

    @property
    def train(self) -> str:
        return glob.escape(str(self.folder)) + f"/{self.name}_train*.bin"

    @property
    def val(self) -> str:
        return glob.escape(str(self.folder)) + f"/{self.name}_val*.bin"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"


def prepare(
    source: str = DEFAULT_SOURCE,
    tokenizer: str = DEFAULT_TOKENIZER,
    out_dir: str | os.PathLike[str] | None = None,
    *,
    val_fraction: float | None = None,
    field: str = "text",
    shard_tokens: int = SHARD_TOKENS,
) -> PreparedData:
    """Tokenizes `source` (a named corpus, file, folder or glob) into `out_dir`, by default a folder in the cache.

    Does nothing but read if the folder already holds the same text in the same tokens, whole. `tokenizer` is as for
    `open_tokenizer`; the rest as for `open_corpus`. UserError for everything that can be wrong with the text, and
    for a folder that holds something else.
    """
    fixed = None if is_trained(tokenizer) else open_tokenizer(tokenizer)
    wanted = fixed.fingerprint() if fixed else f"{tokenizer.partition(':')[0]}:{trained_size(tokenizer)}"
    corpus = open_corpus(source, field, val_fraction)
    key = hashlib.sha256(f"{_FORMAT} {corpus.name} {corpus.fingerprint} {wanted} {shard_tokens}".encode()).hexdigest()[
        :16
    ]
    kind = tokenizer.replace(":", "") if fixed is None or fixed.name == tokenizer else "tokenizer"
    folder = Path(out_dir).expanduser() if out_dir else cache_dir() / "prepared" / f"{corpus.name}-{kind}-{key}"
    try:
        found = _find(folder, key)
    except UserError:
        if out_dir is not None:
            raise
        shutil.rmtree(folder, ignore_errors=True)  # a damaged folder of the cache is prepared anew
        found = None
    return found or _make_folder(folder, key, corpus, fixed or _trained(corpus, wanted), shard_tokens)


def _find(folder: Path, key: str) -> PreparedData | None:
    """Returns the checked data of a folder, or None if the folder is empty; raises UserError for other files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found_key, files = manifest.pop("key"), dict(manifest.pop("files"))
        manifest |= {name: tuple(manifest[name]) for name in ("train_files", "val_files")}
        data = PreparedData(folder=folder, **manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} holds something else already: choose another folder with --out") from error
    if found_key != key:
        raise UserError(
            f"{folder} holds other prepared data already ({data.title} in {data.tokenizer_name} tokens): delete it, or "
            f"choose another folder with --out"
        )
    for name, told in files.items():
        path = folder / name
        if not path.is_file() or told != _seal_of(path):
            raise UserError(f"{path} is missing or damaged: delete {folder} and prepare it again")
    return data


def _make_folder(folder: Path, key: str, corpus: Corpus, tokenizer: Tokenizer, shard_tokens: int) -> PreparedData:
    """Makes the whole set under another name, then gives it its own."""
    make_dir(folder.parent)
    _remove_abandoned(folder)
    workshop = make_dir(folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"))
    try:
        made = _make(corpus, tokenizer, workshop, shard_tokens)
        names = ("tokenizer.json", *made["train_files"], *made["val_files"])
        manifest = {"key": key, **made, "files": {name: _seal_of(workshop / name) for name in names}}
        write_text_atomic(workshop / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        try:
            with suppress(OSError):
                folder.rmdir()  # an empty one makes way
            os.rename(workshop, folder)
        except OSError as error:
            # Another process may have been faster with the same data: then its set is as good as ours.
            if (found := _find(folder, key)) is not None:
                return found
            raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    sync_dir(folder.parent)
    return PreparedData(folder=folder, **made)


def check_seals(files: Sequence[Path]) -> list[str]:
    """The SHA-256 of each shard, as the manifest beside it has it; "" where there is none.

    UserError for a shard that is not what its manifest says.
    """
    found = []
    for path in files:
        try:
            told = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))["files"].get(path.name)
        except FileNotFoundError:
            told = None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path.parent / MANIFEST} is damaged: prepare the data again") from error
        if told and told != _seal_of(path):
            raise UserError(f"{path} is damaged: it is not as {MANIFEST} says: prepare the data again")
        found.append(told["sha256"] if told else "")
    return found


def _seal_of(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _trained(corpus: Corpus, spec: str) -> Tokenizer:
    """The tokenizer that `spec` asks for, trained on what is not for validation."""

    def texts() -> Iterator[str]:
        left = TRAINING_CHARACTERS
        for piece in corpus.pieces():
            if piece.split == "train":
                bar.advance(piece.source_bytes)
                left -= len(piece.text)
                yield piece.text
            if left <= 0:
                return

    with progress_bar.bar(f"training a tokenizer on {corpus.title}", min(corpus.size, TRAINING_CHARACTERS), "B") as bar:
        return Tokenizer.from_spec(spec, texts())


def _make(corpus: Corpus, tokenizer: Tokenizer, folder: Path, shard_tokens: int) -> dict[str, Any]:
    """Writes tokenizer and shards into `folder`; returns the fields of PreparedData."""
    tokenizer.save(folder / "tokenizer.json")
    documents = characters = 0
    separator = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], np.uint32)
    writers: dict[Split, ShardWriter] = {}
    with (
        ShardWriter(folder / f"{corpus.name}_train", tokenizer.vocab_size, shard_tokens) as writers["train"],
        ShardWriter(folder / f"{corpus.name}_val", tokenizer.vocab_size, shard_tokens) as writers["val"],
        progress_bar.bar(f"tokenizing {corpus.title}", corpus.size, "B") as bar,
    ):
        for batch in _batches(corpus.pieces()):
            encoded: dict[Split, list[np.ndarray]] = {"train": [], "val": []}
            for piece, tokens in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
                documents += piece.starts_document and not piece.is_tail
                characters += len(piece.text)
                encoded[piece.split] += [separator, tokens] if piece.starts_document else [tokens]
            for split, parts in encoded.items():
                tokens = np.concatenate([separator[:0], *parts])
                if split == "train":  # where the first tokens validate, no piece does
                    held_out = max(corpus.first_tokens_validate - writers["val"].tokens, 0)
                    writers["val"].write(tokens[:held_out])
                    tokens = tokens[held_out:]
                writers[split].write(tokens)
            bar.advance(sum(piece.source_bytes for piece in batch))
        if characters < MIN_CHARACTERS:
            raise UserError(
                f"{corpus.title} is too short: {characters} characters of text, at least {MIN_CHARACTERS} needed"
            )
        for split, writer in writers.items():
            if writer.tokens < MIN_TOKENS:
                raise UserError(
                    f"{corpus.title} is too short: {writer.tokens} tokens for the split {split!r}: give more text or "
                    f"another validation fraction"
                )
    return {
        "name": corpus.name,
        "title": corpus.title,
        "tokenizer_name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "documents": documents,
        "characters": characters,
        "train_tokens": writers["train"].tokens,
        "val_tokens": writers["val"].tokens,
        "train_files": tuple(path.name for path in writers["train"].files),
        "val_files": tuple(path.name for path in writers["val"].files),
    }


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _remove_abandoned(folder: Path) -> None:
    """Half-made folders of processes that were killed."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
