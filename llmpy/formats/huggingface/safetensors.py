"""safetensors, on a page: u64 length, a JSON header of that length, then the tensors, all little-endian.

    {"__metadata__": {"format": "pt"},
     "wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]}, ...}

https://huggingface.co/docs/safetensors. Read through a memory map and written tensor by tensor, so that neither takes
memory for a second copy of the model. A file is checked as the original library checks it: the tensors must fill the
file exactly.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from llmpy.errors import UserError

MAX_HEADER = 100_000_000  # bytes; the library's limit
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where it lies, counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor that is made only when its turn comes: `make()` returns an array of that dtype and shape."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> TensorToWrite:
        """A tensor that exists already."""
        return cls(name, array.dtype, array.shape, lambda: array)


class SafetensorsFile:
    """An open file: `entries` by name, `metadata`, and `tensor(name)`, a read-only view of the memory-mapped file.

    Raises UserError, in one line that names the file, for anything that is not a whole and consistent safetensors file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.size = file.seek(0, 2)
                file.seek(0)
                header, self._data_start = _read_header(file, self.size, self.path)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from error
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.entries = _check_entries(header, self.size - self._data_start, self.path)

    def tensor(self, name: str) -> np.ndarray:
        """The tensor as it lies in the file; ml_dtypes.bfloat16 for BF16. KeyError where there is none of that name."""
        entry = self.entries[name]
        if entry.start == entry.stop:
            return np.empty(entry.shape, DTYPES[entry.dtype])
        flat = np.frombuffer(self._map, DTYPES[entry.dtype], prod(entry.shape), self._data_start + entry.start)
        return flat.reshape(entry.shape)


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The header as a dict, and the offset at which the tensors begin."""
    if size < 8:
        raise UserError(f"{path} is cut off: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER):
        raise UserError(f"{path} is cut off or not safetensors: it announces a header of {length} bytes and has {size}")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, " ".join(str(error).split())[:200]) from error
    if not isinstance(header, dict):
        raise _damaged(path, "it is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "__metadata__ is not a table of texts")
    return header, 8 + length


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} has a damaged safetensors header: {why}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _check_entries(header: dict[str, Any], data_size: int, path: Path) -> dict[str, Entry]:
    """Every entry is well formed, and together they fill the data without gap or overlap."""
    entries = {name: _entry(name, value, path) for name, value in header.items()}
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end:
            raise _damaged(path, f"{entry.name!r} leaves a gap or overlaps another")
        end = entry.stop
    if end != data_size:
        what = "cut off" if end > data_size else "too long"
        raise UserError(f"{path} is {what}: its header describes {end} bytes of tensors, the file holds {data_size}")
    return entries


def _entry(name: str, value: Any, path: Path) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{name!r} does not give dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _damaged(path, f"{name!r} is of type {str(dtype)[:40]!r}, readable are {', '.join(DTYPES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{name!r} has no valid shape and data_offsets")
    start, stop = offsets
    if stop - start != (size := prod(shape) * DTYPES[dtype].itemsize):
        raise _damaged(path, f"{name!r} has {stop - start} bytes, its shape and type ask for {size}")
    return Entry(name, dtype, tuple(shape), start, stop)


def _naturals(values: Any) -> bool:
    """A list of whole numbers of 0 or more, as large as a file can be?"""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def write(file: BinaryIO, tensors: Iterable[TensorToWrite], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a whole safetensors file to the open binary `file`, one tensor in memory at a time."""
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.bytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin aligned, as the library writes them
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        array = np.asarray(tensor.make(), order="C")
        if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{tensor.name} was announced as {tensor.dtype} {tensor.shape}")
        file.write(array.reshape(-1).view(np.uint8).data)
