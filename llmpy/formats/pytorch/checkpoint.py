"""Reader of `torch.save` files (`ckpt.pt`, `consolidated.00.pth`) that needs no PyTorch and runs no code of the file.

The file is a zip archive, nothing in it compressed: `NAME/data.pkl`, a pickle of containers and of tensors that name a
storage, and `NAME/data/0`, `NAME/data/1`, ..., the elements of the storages. Tensors are views of the memory-mapped
file, so only accessed tensors are read. Files written before PyTorch 1.6 are no archives and are refused.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llmpy.errors import UserError
from llmpy.formats.pytorch.safe_pickle import Name, dict_of_pairs, read_pickle

ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = 30  # bytes of a zip entry before its name
# The class of a storage, by which a tensor says its type. There is no bfloat16 of NumPy's own.
_STORAGES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_DTYPE_NAMES = frozenset(f"torch.{name}" for name in _DTYPES)
_ZIP_ERRORS = (zipfile.BadZipFile, ValueError, KeyError, RuntimeError, EOFError, struct.error, OverflowError)


class _Storage(NamedTuple):
    """A storage in the file: `size` elements from byte `start` on."""

    dtype: np.dtype
    start: int
    size: int


def read_torch_file(path: Path) -> Any:
    """Reads a saved object: its containers, with each tensor as a read-only array [shape] mapped from the file.

    bfloat16 is that of ml_dtypes; an ordered dict comes back as a dict. Raises UserError, in one line, for a file that
    is no such archive, is damaged, or holds anything but tensors and plain containers.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if mapped[:4] != ZIP_MAGIC:
        raise UserError(f"{path} is no archive of torch.save, or one from before PyTorch 1.6: save it again")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            for name in (pickles[0], f"{folder}byteorder"):
                _check_stored(entries.get(name), path)
            data = archive.read(pickles[0])
            big_endian = f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") == b"big"
    except (OSError, *_ZIP_ERRORS) as error:  # one: an offset that lies before the file
        raise _damaged(path, " ".join(str(error).split())[:200] or type(error).__name__) from error
    if big_endian:
        raise UserError(f"{path} was written on a big-endian machine: save it again on this one")
    calls: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": dict_of_pairs,
        "torch._utils._rebuild_tensor_v2": partial(_tensor, mapped),
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch.device": lambda *words: ":".join(map(str, words)),
        "torch.Size": tuple,
    }
    storage = partial(_storage, entries, folder, mapped, path)
    return read_pickle(data, path, calls, _DTYPE_NAMES | _STORAGES.keys(), storage)


def is_torch_file(path: Path) -> bool:
    """Is this zip archive one of torch.save, as far as its list of files says? One that is cut off has no list."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, *_ZIP_ERRORS):
        return path.suffix in (".pt", ".pth")


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged or cut off: {why}")


def _check_stored(entry: zipfile.ZipInfo | None, path: Path) -> None:
    """Refuses a compressed entry, which could be a thousand times as large as the file."""
    if entry is None:
        return
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise UserError(f"{path} is damaged, or not written by torch.save: {entry.filename[:100]} is compressed")


def _storage(
    entries: dict[str, zipfile.ZipInfo], folder: str, mapped: mmap.mmap, path: Path, description: Any
) -> _Storage:
    """("storage", class, name, device, numbers) -> where its numbers lie."""
    kind, storage_class, key, _, count = description
    dtype = _STORAGES[storage_class.name] if isinstance(storage_class, Name) else None
    if kind != "storage" or dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError("a storage that is not described as PyTorch does")
    entry = entries.get(f"{folder}data/{key}")
    if entry is None:
        raise _damaged(path, f"it has no data/{key[:100]}")
    _check_stored(entry, path)
    header = mapped[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
    if len(header) < _LOCAL_HEADER or header[:4] != ZIP_MAGIC:
        raise _damaged(path, f"data/{key[:100]} is not where the archive says")
    start = entry.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
    if count * dtype.itemsize > min(entry.file_size, len(mapped) - start):
        raise _damaged(path, f"data/{key[:100]} has less than {count} numbers")
    return _Storage(dtype, start, count)


def _tensor(mapped: mmap.mmap, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """A view of the storage, in numbers: from `offset`, of `shape`, `strides` apart. ValueError where it leads out."""
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or not 0 <= n < 2**62 for n in sizes):
        raise ValueError("a tensor that is not described as PyTorch does")
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError(f"a tensor of shape {shape} and strides {strides}")
    if prod(shape) == 0:
        return np.empty(shape, storage.dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.size or prod(shape) > storage.size:  # a stride of 0 would make numbers from nothing
        raise ValueError(f"a tensor of {prod(shape)} numbers in a storage of {storage.size}")
    flat = np.frombuffer(mapped, storage.dtype, storage.size - offset, storage.start + offset * storage.dtype.itemsize)
    return np.lib.stride_tricks.as_strided(
        flat, shape, [stride * storage.dtype.itemsize for stride in strides], writeable=False
    )
