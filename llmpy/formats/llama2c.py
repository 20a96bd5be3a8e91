"""llama2.c's model files: version 0 (float32, what its `run` reads), 1 (float32) and 2 (Q8_0: 8 bits), little-endian.

Version 0 has 28 bytes of header and no magic number; it is known by its size, which its header gives. Version 2 keeps
each row in groups of 64 numbers or fewer: int8 values, and a float32 scale for each group.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from llmpy.errors import UserError
from llmpy.formats.llmc.model import check_size
from llmpy.formats.tensor_map import Part, checked_config, parts, read_parts, store_parts
from llmpy.models.inference_weights import Copy, StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters
from llmpy.quant.types import F32, Q8_0, quantize_into
from llmpy.utils.atomic_files import write_atomic
from llmpy.utils.progress_bar import bar

MAGIC = 0x616B3432
HEADER_BYTES = {0: 28, 1: 256, 2: 256}
LARGEST_GROUP = 64
_LAYER = "model.layers.{}."
_EMBEDDING, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_NORM1, _NORM2 = f"{_LAYER}input_layernorm.weight", f"{_LAYER}post_attention_layernorm.weight"
_ATTENTION = [f"{_LAYER}self_attn.{letter}_proj.weight" for letter in "qkvo"]
_W1, _W2, _W3 = (f"{_LAYER}mlp.{name}_proj.weight" for name in ("gate", "down", "up"))
# The order of the tensors, each over all layers; between norm and head, version 0 has the table of rotations.
_ORDER = {
    0: [_EMBEDDING, _NORM1, *_ATTENTION, _NORM2, _W1, _W2, _W3, _NORM, _HEAD],
    1: [_NORM1, _NORM2, _NORM, _EMBEDDING, *_ATTENTION, _W1, _W2, _W3, _HEAD],
}
_ORDER[2] = _ORDER[1]


class Q8Tensor(NamedTuple):
    """values int8 [..., n], scales float32 [..., n / group size]: a number is value times scale of its group."""

    values: np.ndarray
    scales: np.ndarray

    def dequantize(self) -> np.ndarray:
        """float32 [..., n]"""
        groups = self.values.reshape(*self.scales.shape, -1).astype(np.float32)
        with np.errstate(all="ignore"):  # a damaged scale may be infinite; `llmpy info` counts what comes of it
            groups *= self.scales[..., None]
        return groups.reshape(self.values.shape)


@dataclass(frozen=True)
class Header:
    """Fields of the header, checked against the size of the file."""

    version: int
    config: LlamaConfig
    group_size: int = 0  # of version 2


def quantize(x: np.ndarray, group_size: int) -> Q8Tensor:
    """float32 [..., n] -> Q8_0: scale = max |x| / 127 over a group, values rounded to nearest, ties to even."""
    groups = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, group_size)
    scales = np.abs(groups).max(-1) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
    return Q8Tensor(np.rint(groups / divisor).astype(np.int8).reshape(x.shape), scales)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_header(path: Path) -> Header:
    """Version and shape of the model in a file. Raises UserError where header and size of the file do not agree."""
    try:
        with open(path, "rb") as file:
            data, size = file.read(256), file.seek(0, 2)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if data[:4] != MAGIC.to_bytes(4, "little"):
        return _check_length(path, _header_v0(path, data), size)
    if len(data) < 256:
        raise UserError(f"{path} is cut off: it has {size} bytes, the header alone takes 256")
    version, *sizes, shared, group_size = struct.unpack_from("<i7iBi", data, 4)
    if version not in (1, 2):
        raise UserError(f"{path} has version {version}: readable are 0, 1 and 2")
    config = _config(path, sizes, bool(shared))
    if version == 1:
        return _check_length(path, Header(1, config), size)
    if group_size < 1 or any(n % group_size for n in (config.channels, config.hidden)):
        raise UserError(
            f"{path} has groups of {group_size}, which do not divide its rows of {config.channels} and {config.hidden}:"
            " export it again with another group size"
        )
    return _check_length(path, Header(2, config, group_size), size)


def looks_like_version_0(start: bytes) -> bool:
    """Are these the sizes of a model, in a file that begins so? Version 0 has nothing else to be known by."""
    if len(start) < HEADER_BYTES[0]:
        return False
    try:
        config = _header_v0(Path(), start).config
    except UserError:
        return False
    widths = max(config.channels, config.hidden)
    return widths <= 2**18 and config.layers <= 2**10 and max(config.vocab_size, config.context) <= 2**24


def _header_v0(path: Path, data: bytes) -> Header:
    if len(data) < HEADER_BYTES[0]:
        raise UserError(f"{path} is cut off or no model of llama2.c: it has {len(data)} bytes")
    *sizes, vocab_size, context = struct.unpack_from("<7i", data)
    return Header(0, _config(path, [*sizes, abs(vocab_size), context], vocab_size > 0))


def _config(path: Path, sizes: list[int], tied: bool) -> LlamaConfig:
    names = ("channels", "hidden", "layers", "heads", "kv_heads", "vocab_size", "context")
    return checked_config(f"{path} has a damaged header", **dict(zip(names, sizes, strict=True)), tied=tied)


def _check_length(path: Path, header: Header, size: int) -> Header:
    check_size(path, size, _length(header))
    return header


def _length(header: Header) -> int:
    """The bytes of a file, without walking the layers: a damaged header may ask for two thousand million of them."""
    c = header.config
    rows = c.vocab_size * (1 if c.tied else 2)
    kv = c.kv_heads * c.head_size
    matrices = rows * c.channels + c.layers * (c.channels * (2 * c.channels + 2 * kv) + 3 * c.channels * c.hidden)
    norms = c.channels * (2 * c.layers + 1)
    table = c.context * (c.head_size // 2) * 2 if header.version == 0 else 0
    quantized = matrices + 4 * (matrices // header.group_size) if header.version == 2 else 4 * matrices
    return HEADER_BYTES[header.version] + 4 * (norms + table) + quantized


class Llama2cFile:
    """An open file: `config`, `version`, and `stored(part)`, which is read-only and lies in the file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        self.config, self.version = self.header.config, self.header.version
        with open(self.path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._starts = {}
        at = HEADER_BYTES[self.version]
        for part in _in_order(self.header):
            self._starts[part.name, part.layer] = at
            at += _bytes_of(part, self.header) + _bytes_behind(part, self.header)

    def stored(self, part: Part) -> np.ndarray | Q8Tensor:
        """float32 of the part's shape, or in version 2 the quantized tensor."""
        start, count = self._starts[part.name, part.layer], prod(part.shape)
        if not _is_quantized(part, self.header):
            return np.frombuffer(self._map, "<f4", count, start).reshape(part.shape)
        values = np.frombuffer(self._map, "i1", count, start).reshape(part.shape)
        scales = np.frombuffer(self._map, "<f4", count // self.header.group_size, start + count)
        return Q8Tensor(values, scales.reshape(*part.shape[:-1], -1))


def _in_order(header: Header) -> Iterator[Part]:
    order = {name: i for i, name in enumerate(_ORDER[header.version])}
    return iter(sorted(parts(header.config), key=lambda part: (order[part.name], part.layer or 0)))


def _is_quantized(part: Part, header: Header) -> bool:
    return header.version == 2 and len(part.shape) == 2


def _bytes_of(part: Part, header: Header) -> int:
    numbers = prod(part.shape)
    return numbers + 4 * (numbers // header.group_size) if _is_quantized(part, header) else 4 * numbers


def _bytes_behind(part: Part, header: Header) -> int:
    """Version 0 has two tables of cosines and sines behind the last norm, which no reader needs."""
    config = header.config
    return 4 * config.context * config.head_size if header.version == 0 and part.name == _NORM else 0


def read_model(path: Path) -> tuple[LlamaConfig, Parameters]:
    """The model in a file, as float32. Raises UserError, before memory is taken, where the file is not whole."""
    file = Llama2cFile(path)
    return file.config, read_parts(file.config, lambda part: as_float32(file.stored(part)), interleaved=True)


def read_stored(path: Path) -> StoredWeights:
    """The model in a file as it lies there; 8 bits, whose scales lie apart from them, in blocks of Q8_0."""
    file = Llama2cFile(path)

    def read(part: Part) -> np.ndarray | Copy:
        stored = file.stored(part)
        return _as_blocks(stored, file.header.group_size) if isinstance(stored, Q8Tensor) else stored

    return store_parts(path, file.config, read)


def _as_blocks(stored: Q8Tensor, group_size: int) -> Copy:
    """The same values, in groups of 32 with a scale in float16; as float32 where groups are smaller or odd."""
    if group_size % Q8_0.numbers:
        return Copy(F32, stored.values.shape, lambda data: quantize_into(data, F32, stored.dequantize()))

    def fill(data: np.ndarray) -> None:
        blocks = data.reshape(*stored.scales.shape, -1, Q8_0.bytes)  # of a row, of a group of it
        with np.errstate(all="ignore"):
            blocks[..., :2] = stored.scales.astype("<f2")[..., None, None].view(np.uint8)
        blocks[..., 2:] = stored.values.view(np.uint8).reshape(*blocks.shape[:-1], Q8_0.numbers)

    return Copy(Q8_0, stored.values.shape, fill)


def as_float32(stored: np.ndarray | Q8Tensor) -> np.ndarray:
    return stored.dequantize() if isinstance(stored, Q8Tensor) else stored


# ---- writing -------------------------------------------------------------------------------------------------------


def write_model(path: Path, config: LlamaConfig, parameters: Parameters, version: int = 0) -> None:
    """Writes a file of version 0, 1 or 2, whole or not at all. UserError for a model that llama2.c cannot run."""
    check_can_be_written(config)
    header = Header(version, config, group_size_for(config) if version == 2 else 0)
    with write_atomic(path) as file, bar("writing", _length(header), "B") as progress:
        file.write(_header_bytes(header))
        for part in _in_order(header):
            _write_part(file, part.stored(parameters, config, interleaved=True), header)
            if _bytes_behind(part, header):
                for table in rotations(config):
                    file.write(table.tobytes())
            progress.advance(_bytes_of(part, header))


def check_can_be_written(config: LlamaConfig) -> None:
    """UserError naming what llama2.c has built in otherwise."""
    built_in = {
        "rope_theta": (config.rope_theta, 10000.0),
        "rope_scaling": (config.rope_scaling, None),
        "norm_eps": (config.norm_eps, 1e-5),
        "qkv_bias": (config.qkv_bias, False),
        "head_size": (config.head_size * config.heads, config.channels),
    }
    for name, (value, wanted) in built_in.items():
        if value != wanted:
            raise UserError(f"llama2.c cannot run this model: its {name} is {getattr(config, name)}")


def group_size_for(config: LlamaConfig) -> int:
    """64 halved until it divides every row. (llama2.c looks at the channels alone, and its 42M goes wrong for it.)"""
    size = LARGEST_GROUP
    while config.channels % size or config.hidden % size:
        size //= 2
    return size


def rotations(config: LlamaConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the angle of every position and pair of channels, float32 [T, hs/2].

    Of the angles in float32, as PyTorch has them; its own cosines are off by a last bit here and there, ours are not.
    """
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = np.outer(np.arange(config.context, dtype=np.float32), frequencies).astype(np.float64)
    return np.cos(angles).astype("<f4"), np.sin(angles).astype("<f4")


def _header_bytes(header: Header) -> bytes:
    c = header.config
    shape = (c.channels, c.hidden, c.layers, c.heads, c.kv_heads)
    if header.version == 0:
        return struct.pack("<7i", *shape, c.vocab_size if c.tied else -c.vocab_size, c.context)
    data = struct.pack("<I8iB", MAGIC, header.version, *shape, c.vocab_size, c.context, c.tied)
    if header.version == 2:
        data += struct.pack("<i", header.group_size)
    return data.ljust(256, b"\0")


def _write_part(file: BinaryIO, array: np.ndarray, header: Header) -> None:
    if header.version == 2 and array.ndim == 2:
        quantized = quantize(array, header.group_size)
        file.write(quantized.values.tobytes() + quantized.scales.astype("<f4").tobytes())
    else:
        file.write(np.ascontiguousarray(array, "<f4").data)
