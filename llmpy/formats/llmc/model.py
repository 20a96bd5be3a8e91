"""llm.c's files of a GPT-2: the model (`gpt2_124M.bin`, float32 or bfloat16), read and written byte for byte.

A header of 256 int32, then the 16 tensors in the order of the table in parameters.py: the flat buffer as it is in
memory. Everything is little-endian. The debug state is in llmc_debug.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from llmpy.errors import UserError
from llmpy.formats.tensor_map import store_parts
from llmpy.models.gpt2 import GPT2Config, gpt2_table
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.parameters import Parameters, total_size
from llmpy.models.transformer import plan_parameters
from llmpy.utils.atomic_files import write_atomic
from llmpy.utils.progress_bar import bar

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MODEL_MAGIC = 20240326
VERSIONS = {"float32": 3, "bfloat16": 5}  # of the model file: the type of all its numbers
DTYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
CHUNK = 4 * 2**20  # numbers converted and copied at a time


@dataclass(frozen=True)
class ModelHeader:
    """Fields of a model file's header, checked against the size of the file."""

    config: GPT2Config
    dtype: str  # "float32" or "bfloat16"


def read_header(path: Path, magic: int, what: str) -> tuple[np.ndarray, int]:
    """The header int32 [256] of a file that begins with `magic`, and the size of the file in bytes."""
    try:
        with open(path, "rb") as file:
            header, size = file.read(HEADER_BYTES), file.seek(0, 2)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(header) >= 4 and int.from_bytes(header[:4], "little") != magic:
        raise UserError(f"{path} is not {what}: it begins with {header[:4].hex(' ')}")
    if len(header) < HEADER_BYTES:
        raise UserError(f"{path} is cut off: it has {size} bytes, the header alone takes {HEADER_BYTES}")
    return np.frombuffer(header, "<i4"), size


def check_size(path: Path, size: int, expected: int) -> None:
    """UserError where a file is shorter or longer than its header says."""
    if size != expected:
        what = "cut off" if size < expected else "too long"
        raise UserError(f"{path} is {what}: its header asks for {expected} bytes, it has {size}")


def read_model_header(path: Path) -> ModelHeader:
    """The shape and type of the model in a file. Raises UserError where the header or the size of the file is wrong."""
    header, size = read_header(path, MODEL_MAGIC, "a GPT-2 model of llm.c")
    version, T, V, L, NH, C, Vp = (int(n) for n in header[1:8])
    dtype = next((name for name, number in VERSIONS.items() if number == version), None)
    if dtype is None:
        raise UserError(f"{path} has version {version}: readable are 3 (float32) and 5 (bfloat16)")
    if min(T, V, L, NH, C) < 1 or C % NH:
        raise UserError(
            f"{path} has a damaged header: context {T}, vocabulary {V}, layers {L}, heads {NH}, channels {C}"
        )
    config = GPT2Config(V, T, L, NH, C)
    if Vp != config.padded_vocab_size:
        raise UserError(
            f"{path} has a damaged header: a vocabulary of {V} padded to {Vp}, not {config.padded_vocab_size}"
        )
    check_size(path, size, HEADER_BYTES + total_size(gpt2_table(config)) * DTYPES[dtype].itemsize)
    return ModelHeader(config, dtype)


def read_model(path: Path) -> tuple[GPT2Config, Parameters]:
    """The model in a file, as float32. Raises UserError, before memory is taken, where the file is not whole."""
    config = read_model_header(path).config
    parameters = Parameters(gpt2_table(config), plan_parameters(config, training=False).take()["parameters"])
    read_parameters(path, config, parameters)
    return config, parameters


def read_stored(path: Path) -> StoredWeights:
    """The model in a file as it lies there. Raises UserError where the file is not whole."""
    header = read_model_header(path)
    numbers = np.memmap(path, DTYPES[header.dtype], "r", HEADER_BYTES).view(np.ndarray)
    tensors = Parameters(gpt2_table(header.config), numbers)
    return store_parts(path, header.config, lambda part: part.of(tensors))


def read_parameters(path: Path, config: GPT2Config, parameters: Parameters) -> None:
    """The weights in a file into `parameters`, which are those of a model of shape `config`."""
    header = read_model_header(path)
    if header.config != config:
        raise UserError(f"{path} holds {header.config}, wanted is {config}")
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        read_floats(file, parameters.flat, DTYPES[header.dtype])


def write_model(path: Path, config: GPT2Config, parameters: Parameters, dtype: str = "float32") -> None:
    """Writes a model file, whole or not at all. dtype: "float32" or "bfloat16" (rounded to nearest, ties to even)."""
    if not config.tied:
        raise UserError(f"{path}: llm.c's format has no head of its own: write a Hugging Face folder instead")
    header = [
        MODEL_MAGIC,
        VERSIONS[dtype],
        config.context,
        config.vocab_size,
        config.layers,
        config.heads,
        config.channels,
    ]
    with write_atomic(path) as file:
        file.write(header_bytes([*header, config.padded_vocab_size]))
        write_floats(file, parameters.flat, DTYPES[dtype])


def header_bytes(values: list[int]) -> bytes:
    """The first entries of a header, the others 0."""
    header = np.zeros(HEADER_INTS, "<i4")
    header[: len(values)] = values
    return header.tobytes()


def read_floats(file: BinaryIO, into: np.ndarray, dtype: np.dtype) -> None:
    """Fills float32 [n] with the next n numbers of the file, which are of `dtype`."""
    with bar(f"reading {Path(file.name).name}", into.size * dtype.itemsize, "B") as progress:
        for start in range(0, into.size, CHUNK):
            part = into[start : start + CHUNK]
            raw = file.read(part.size * dtype.itemsize)
            if len(raw) != part.size * dtype.itemsize:
                raise UserError(f"{file.name} ended while it was read: is something else writing it?")
            part[:] = np.frombuffer(raw, dtype)
            progress.advance(len(raw))


def write_floats(file: BinaryIO, values: np.ndarray, dtype: np.dtype) -> None:
    """Appends float32 [n] as numbers of `dtype`."""
    with bar("writing", values.size * dtype.itemsize, "B") as progress:
        for start in range(0, values.size, CHUNK):
            progress.advance(file.write(values[start : start + CHUNK].astype(dtype).view(np.uint8).data))
