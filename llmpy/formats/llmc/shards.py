"""Shards of tokens in llm.c's format: a header of 256 int32 (magic, version, tokens), then the tokens, little-endian.

uint16 where the vocabulary allows (magic 20240520, version 1: GPT-2's shards), else uint32 (20240801, 7: Llama 3's).
"""

import glob
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from llmpy.errors import UserError
from llmpy.utils.atomic_files import write_atomic

HEADER_BYTES = 1024
SHARD_TOKENS = 100_000_000
CHECK_BLOCK = 1 << 22  # tokens looked at in one go
_KINDS: dict[tuple[int, int], np.dtype] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}


class ShardInfo(NamedTuple):
    tokens: int
    dtype: np.dtype


def dtype_for(vocab_size: int) -> np.dtype:
    """uint16 if it can hold every id, else uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def _header(tokens: int, dtype: np.dtype) -> bytes:
    magic, version = next(kind for kind, kind_dtype in _KINDS.items() if kind_dtype == dtype)
    return struct.pack(f"<3i{HEADER_BYTES - 12}x", magic, version, tokens)


def is_shard(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as a shard does, damaged or not."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return len(head) == 8 and struct.unpack("<2i", head) in _KINDS


def shard_info(path: str | os.PathLike[str]) -> ShardInfo:
    """Reads a shard's header and checks it against the file size. Raises UserError for an incomplete shard."""
    try:
        with open(path, "rb") as file:
            header = file.read(12)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror}") from error
    if size < HEADER_BYTES:
        raise UserError(f"{path} is no shard of tokens: {size} bytes, less than a header; prepare or copy it again")
    magic, version, tokens = struct.unpack("<3i", header)
    dtype = _KINDS.get((magic, version))
    if dtype is None:
        raise UserError(
            f"{path} is no shard of tokens: magic number {magic}, version {version} instead of 20240520, 1 (uint16) or "
            f"20240801, 7 (uint32); prepare or copy it again"
        )
    if tokens < 1 or size != HEADER_BYTES + tokens * dtype.itemsize:
        raise UserError(
            f"{path} is damaged: {size} bytes where its header says {tokens} tokens of {dtype.itemsize} bytes; "
            f"prepare or copy it again"
        )
    return ShardInfo(tokens, dtype)


def open_shard(path: str | os.PathLike[str]) -> np.ndarray:
    """The tokens of a shard as a read-only array on the file itself, uint16 or uint32 [tokens]; nothing is read yet."""
    info = shard_info(path)
    return np.memmap(path, info.dtype, "r", HEADER_BYTES, (info.tokens,)).view(np.ndarray)


def check_vocabulary(tokens: np.ndarray, vocab_size: int, where: str | os.PathLike[str]) -> None:
    """UserError if there is a token that the vocabulary has not. Reads all of `tokens`, in blocks."""
    for start in range(0, len(tokens), CHECK_BLOCK):
        block = tokens[start : start + CHECK_BLOCK]
        if (highest := int(block.max())) >= vocab_size:
            at = start + int(np.argmax(block >= vocab_size))
            raise UserError(
                f"{where}: token {at} is {int(tokens[at])} (and there are ids up to {highest}), but the vocabulary has "
                f"{vocab_size}: the shard is damaged or was made with another tokenizer"
            )


def shard_files(pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """A glob, or the files themselves -> the files in the order of their names. UserError if there is none."""
    if isinstance(pattern, str | os.PathLike):
        files = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        if not files:
            raise UserError(f"no shards of tokens at {pattern}: see where `llmpy prepare` has put them")
        return [Path(name) for name in files]
    return [Path(name) for name in pattern]


def write_shard(path: str | os.PathLike[str], tokens: np.ndarray, vocab_size: int) -> None:
    """Writes one shard, whole or not at all. ValueError for a token that the vocabulary has not."""
    if len(tokens) and int(tokens.max()) >= vocab_size:
        raise ValueError(f"token {int(tokens.max())} in a vocabulary of {vocab_size}")
    dtype = dtype_for(vocab_size)
    with write_atomic(path) as file:
        file.write(_header(len(tokens), dtype))
        file.write(np.ascontiguousarray(tokens, dtype).tobytes())


class ShardWriter:
    """Writes a stream of tokens to `NAME_SPLIT_000000.bin` and so on, or to `NAME_SPLIT.bin` if one is enough.

    A context manager; each shard appears once it is complete. `files` and `tokens` hold what there is in the end.
    """

    def __init__(self, stem: str | os.PathLike[str], vocab_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self.stem, self.vocab_size, self.shard_tokens = Path(stem), vocab_size, shard_tokens
        self.files: list[Path] = []
        self.tokens = 0
        self._dtype = dtype_for(vocab_size)
        self._room = 0
        self._file: BinaryIO
        self._open = ExitStack()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self._open.__exit__(kind, error, trace)  # the shard that is not complete goes
            return
        self._finish_shard()
        if len(self.files) == 1:
            single = self.stem.with_name(f"{self.stem.name}.bin")
            self.files = [self.files[0].replace(single)]

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens, uint [n]. ValueError for a token that the vocabulary has not."""
        if len(tokens) and int(tokens.max()) >= self.vocab_size:
            raise ValueError(f"token {int(tokens.max())} in a vocabulary of {self.vocab_size}")
        while len(tokens):
            if self._room == 0:
                self._start_shard()
            part, tokens = tokens[: self._room], tokens[self._room :]
            self._file.write(part.astype(self._dtype).tobytes())
            self._room -= len(part)
            self.tokens += len(part)

    def _start_shard(self) -> None:
        self._finish_shard()
        path = self.stem.with_name(f"{self.stem.name}_{len(self.files):06d}.bin")
        self.files.append(path)
        self._file = self._open.enter_context(write_atomic(path))
        self._file.write(bytes(HEADER_BYTES))
        self._room = self.shard_tokens

    def _finish_shard(self) -> None:
        if self.files:
            self._file.seek(0)
            self._file.write(_header(self.tokens - (len(self.files) - 1) * self.shard_tokens, self._dtype))
            self._open.close()
