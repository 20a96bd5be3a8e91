"""GGUF, the files of llama.cpp: metadata and tensors, memory-mapped and as they are stored.

    "GGUF", u32 version, u64 tensors, u64 entries
    entries: key, u32 type, value                          (texts are a u64 length and UTF-8)
    tensors: name, u32 axes, u64 size of each, u32 type, u64 offset
    from the next multiple of `general.alignment` on: the tensors

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The official library `gguf` reads the same; it takes ten
seconds and 600 MB for the vocabulary of a Llama 3, and a damaged length may keep it busy for ever.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.quant.types import BLOCK_TYPES, OTHER_TYPES, BlockType, dequantize

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_AXES = 4
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_TEXT, _ARRAY = 8, 9
_SMALLEST_ENTRY, _SMALLEST_TENSOR = 13, 24  # bytes


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file: `data` uint8 [..., bytes of a row], read-only; `shape` counts numbers."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    data: np.ndarray

    def dequantize(self) -> np.ndarray:
        """float32 of `shape`, a new array"""
        return dequantize(self.kind, self.data).reshape(self.shape)


class GGUFFile:
    """An open GGUF file: `metadata` by key, `tensors` by name. A numeric array is an ndarray, a text array a list.

    Raises UserError, in one line that names the file, for what is cut off, damaged or of a type that is not read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}") from error
        cursor = _Cursor(self._map, self.path)
        tensors, entries = self._read_counts(cursor)
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.text()
            if key in self.metadata:
                raise cursor.damaged(f"{key[:60]!r} is there twice")
            self.metadata[key] = cursor.value(cursor.number("<u4"))
        infos = [self._read_info(cursor) for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment < 2**32:
            raise cursor.damaged("its alignment is no number")
        self._data_start = -(-cursor.at // alignment) * alignment
        self.tensors: Mapping[str, StoredTensor] = self._map_tensors(infos)

    def _read_counts(self, cursor: _Cursor) -> tuple[int, int]:
        if self._map[:4] != MAGIC:
            raise UserError(f"{self.path} is no GGUF file: it begins with {self._map[:4].hex(' ')}")
        cursor.at = 4
        version = cursor.number("<u4")
        if version not in VERSIONS:
            why = "big-endian, or damaged" if version & 0xFFFF == 0 else f"readable are {', '.join(map(str, VERSIONS))}"
            raise UserError(f"{self.path} is a GGUF file of version {version}: {why}")
        tensors, entries = cursor.number("<u8"), cursor.number("<u8")
        if tensors * _SMALLEST_TENSOR + entries * _SMALLEST_ENTRY > len(self._map):
            raise cursor.damaged(f"{tensors} tensors and {entries} entries do not fit into {len(self._map)} bytes")
        return tensors, entries

    def _read_info(self, cursor: _Cursor) -> tuple[str, BlockType, tuple[int, ...], int]:
        """(name, type, shape, offset) of a tensor"""
        name, axes = cursor.text(), cursor.number("<u4")
        if not 1 <= axes <= MAX_AXES:
            raise cursor.damaged(f"{name[:60]!r} has {axes} axes")
        shape = tuple(cursor.number("<u8") for _ in range(axes))[::-1]
        number, offset = cursor.number("<u4"), cursor.number("<u8")
        kind = BLOCK_TYPES.get(number)
        if kind is None:
            readable = ", ".join(kind.name for kind in BLOCK_TYPES.values())
            what = OTHER_TYPES.get(number, str(number))
            raise UserError(f"{self.path}: {name[:60]!r} is of type {what}, readable are {readable}")
        if min(shape) < 1 or shape[-1] % kind.numbers:
            raise cursor.damaged(f"{name[:60]!r} has shape {shape}, of type {kind.name}")
        return name, kind, shape, offset

    def _map_tensors(self, infos: list[tuple[str, BlockType, tuple[int, ...], int]]) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        end = 0
        for name, kind, shape, offset in sorted(infos, key=lambda info: info[3]):
            size = prod(shape[:-1]) * kind.row_bytes(shape[-1])
            start = self._data_start + offset
            if start + size > len(self._map):
                raise UserError(f"{self.path} is cut off or damaged: {name[:60]!r} ends at byte {start + size}")
            if name in tensors or offset < end:
                raise UserError(f"{self.path} is damaged: {name[:60]!r} is there twice, or lies on another tensor")
            end = offset + size
            data = np.frombuffer(self._map, np.uint8, size, start)
            tensors[name] = StoredTensor(name, kind, shape, data.reshape(*shape[:-1], kind.row_bytes(shape[-1])))
        return {name: tensors[name] for name, *_ in infos}

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that makes a prompt of a conversation."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None


class _Cursor:
    """A place in the header. UserError where it would go over the end of the file."""

    def __init__(self, mapped: mmap.mmap, path: Path) -> None:
        self.map, self.path, self.at = mapped, path, 0

    def damaged(self, why: str) -> UserError:
        return UserError(f"{self.path} is damaged: {why}")

    def take(self, size: int) -> int:
        """Returns the offset of the next `size` bytes and moves the cursor behind them."""
        if size > len(self.map) - self.at:
            raise UserError(f"{self.path} is cut off or damaged: its header does not end")
        self.at += size
        return self.at - size

    def number(self, dtype: str) -> int:
        kind = np.dtype(dtype)
        return int.from_bytes(self.map[self.take(kind.itemsize) : self.at], "little", signed=kind.kind == "i")

    def text(self) -> str:
        size = self.number("<u8")
        start = self.take(size)
        try:
            return self.map[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a text in its header is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.damaged(f"an entry of type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.map, dtype, 1, self.take(dtype.itemsize))[0].item()

    def array(self) -> np.ndarray | list[str]:
        kind, count = self.number("<u4"), self.number("<u8")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.map, dtype, count, self.take(count * dtype.itemsize))
        if kind != _TEXT:
            raise self.damaged(f"an array of type {kind}")
        return self._texts(count)

    def _texts(self, count: int) -> list[str]:
        """Reads `count` texts in one loop, fast enough for a vocabulary of a hundred thousand."""
        if count * 8 > len(self.map) - self.at:
            raise self.damaged(f"an array of {count} texts")
        texts, at, unpack = [], self.at, struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                [size] = unpack(self.map, at)
                at += 8 + size
                if at > len(self.map):
                    raise struct.error
                texts.append(self.map[at - size : at].decode())
        except (struct.error, UnicodeDecodeError) as error:
            raise self.damaged("an array of texts leads out of the file or is not UTF-8") from error
        self.at = at
        return texts
