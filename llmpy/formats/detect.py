"""Detection of a file's or folder's format, from its first bytes and its name."""

from __future__ import annotations

import codecs
from pathlib import Path

from llmpy.errors import UserError
from llmpy.formats.llama2c import looks_like_version_0
from llmpy.formats.llmc.shards import is_shard
from llmpy.formats.pytorch.checkpoint import ZIP_MAGIC, is_torch_file
from llmpy.formats.pytorch.meta_llama import FIRST_SHARD, PARAMS

DONE = "DONE"  # in a checkpoint: it is complete
RUN = "run folder"
FOLDER = "Hugging Face folder"
DATA_FOLDER = "folder of token shards"
LLMC_MODEL = "GPT-2 model of llm.c"
DEBUG_STATE = "debug state of llm.c"
LLMC_TOKENIZER = "tokenizer of llm.c"
TOKENIZER_JSON = "tokenizer.json"
LLAMA2C_MODEL = "Llama of llama2.c"
LLAMA2C_TOKENIZER = "tokenizer of llama2.c"
SENTENCEPIECE = "SentencePiece model"
GGUF = "GGUF file"
TORCH = "PyTorch checkpoint"
META_FOLDER = "Llama of Meta"
SHARD = "shard of tokens"
SAFETENSORS = "safetensors file"
TEXT = "text file"
TOKENIZERS = (LLMC_TOKENIZER, TOKENIZER_JSON, LLAMA2C_TOKENIZER, SENTENCEPIECE)
MODELS_HELP = (
    "a model is a run folder, a Hugging Face folder or name, a .bin of llm.c or llama2.c, a GGUF, a ckpt.pt of llama2.c"
    " or a folder of Meta's"
)

_MAGIC = {
    20240326: LLMC_MODEL,
    20240327: DEBUG_STATE,
    20240328: LLMC_TOKENIZER,
    20240520: SHARD,
    20240801: SHARD,
    0x616B3432: LLAMA2C_MODEL,
    int.from_bytes(b"GGUF", "little"): GGUF,
}
# Known by their first bytes, and not read.
_FOREIGN = {
    (20240522).to_bytes(4, "little"): "HellaSwag file of llm.c",
    (20240527).to_bytes(4, "little"): "optimizer state of llm.c",
    (20240803).to_bytes(4, "little"): "Llama 3 model of llm.c",
    b"PK\x03\x04": "zip archive",
    b"\x80\x02": "pickle, which is not opened",
    b"\x80\x04": "pickle, which is not opened",
    b"\x1f\x8b": "gzip archive",
    b"\x93NUMPY": "NumPy array",
    b"\x7fELF": "program",
    b"\x89PNG": "picture",
    b"%PDF": "PDF document",
}
READABLE = (
    "readable are run folders, Hugging Face folders of GPT-2 and Llama, safetensors, GGUF, models and tokenizers of"
    " llm.c and llama2.c, Llamas of Meta, debug states, token shards, tokenizer.json, SentencePiece's .model, and text"
)


def detect(path: Path) -> str:
    """One of the kinds above. Raises UserError, saying what it looks like, for what is of no kind that is read."""
    if path.is_dir():
        return _detect_folder(path)
    try:
        with open(path, "rb") as file:
            start = file.read(65536)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not start:
        raise UserError(f"{path} is empty")
    if kind := _MAGIC.get(int.from_bytes(start[:4], "little")):
        return kind
    if start.startswith(ZIP_MAGIC) and is_torch_file(path):
        return TORCH
    for first, what in _FOREIGN.items():
        if start.startswith(first):
            raise UserError(f"{path} looks like {with_article(what)}: {READABLE}")
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32):
        return SAFETENSORS
    if path.suffix == ".json" and start.lstrip().startswith(b"{") and b'"model"' in path.read_bytes():
        return TOKENIZER_JSON
    if _is_text(start):
        return TEXT
    if start[8:17] == b"\x05\0\0\0<unk>":  # the first token of all that SentencePiece has trained
        return LLAMA2C_TOKENIZER
    if path.suffix == ".model":
        return SENTENCEPIECE
    if looks_like_version_0(start):
        return LLAMA2C_MODEL
    raise UserError(f"{path} is of no kind that llm.py knows (it begins with {start[:4].hex(' ')}): {READABLE}")


def _detect_folder(path: Path) -> str:
    if (path / "config.toml").exists() or next(path.glob("step_*"), None):
        return RUN
    if (path / PARAMS).exists() and (path / FIRST_SHARD).exists():
        return META_FOLDER
    if (path / "config.json").exists() or next(path.glob("*.safetensors"), None):
        return FOLDER
    if any(is_shard(file) for file in path.glob("*.bin")):
        return DATA_FOLDER
    raise UserError(f"the folder {path} holds no run, model or token shards: {READABLE}")


def _is_text(start: bytes) -> bool:
    """UTF-8 without NUL; a character that is cut where the sample ends is no fault."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


def with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeioAEIO' else 'a'} {kind}"


def newest_step(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder, or None."""
    steps = {int(path.name.removeprefix("step_")): path for path in run.glob("step_*") if path.name[5:].isdecimal()}
    return next((steps[step] for step in sorted(steps, reverse=True) if (steps[step] / DONE).exists()), None)
