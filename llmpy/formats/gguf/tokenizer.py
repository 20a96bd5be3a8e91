"""The tokenizer in a GGUF file: SentencePiece's ("llama") or byte-level byte-pair encoding ("gpt2")."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.formats.gguf.file import GGUFFile
from llmpy.tokenization.base import GPT2_PATTERN, HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from llmpy.tokenization.sentencepiece_files import BOS, EOS, Pieces, begin_with, check_pieces

_KEY = "tokenizer.ggml."
_NORMAL, _UNUSED = 1, 5
# Contractions, words, then numbers as the family cuts them, then the rest.
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_LLAMA3, _QWEN2 = (numbers.join(_CUT) for numbers in (r"\p{N}{1,3}", r"\p{N}"))
# `tokenizer.ggml.pre` -> how text is cut before bytes are merged: patterns, one after the other.
_PATTERNS = {
    **dict.fromkeys(("default", "gpt-2", "gpt2"), (GPT2_PATTERN,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (_QWEN2,)),
    "smollm": (r"\p{N}", GPT2_PATTERN),
}
_WHOLE_TOKENS_FIRST = ("llama-bpe", "llama3", "llama-v3")  # a word that is a token is not merged from its bytes
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # Unicode's normal form C


def has_tokenizer(file: GGUFFile) -> bool:
    return f"{_KEY}model" in file.metadata


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer of the model. UserError where there is none in the file, or one of another kind."""
    kind = file.metadata.get(f"{_KEY}model")
    if kind == "llama":
        return _sentencepiece(file)
    if kind == "gpt2":
        return _byte_level(file)
    what = (
        "holds no tokenizer" if kind is None else f"has a tokenizer of kind {str(kind)[:40]!r}, read are llama and gpt2"
    )
    raise UserError(f"{file.path} {what}: give --tokenizer FILE")


def _texts(file: GGUFFile, name: str) -> list[str]:
    texts = file.metadata.get(_KEY + name)
    if not isinstance(texts, list):
        raise UserError(f"{file.path}: {_KEY}{name} is missing or no list of texts")
    return texts


def _numbers(file: GGUFFile, name: str, count: int, default: float) -> np.ndarray:
    """[count], as they are or all `default`."""
    numbers = file.metadata.get(_KEY + name)
    if numbers is None:
        return np.full(count, default)
    if not isinstance(numbers, np.ndarray) or len(numbers) != count:
        raise UserError(f"{file.path}: {_KEY}{name} has not one number for each of {count} tokens")
    return numbers


def _special(file: GGUFFile, name: str, count: int) -> int | None:
    """The id of bos, eos, ..., None where the file has none."""
    token = file.metadata.get(f"{_KEY}{name}_token_id")
    if token is not None and not (type(token) is int and 0 <= token < count):
        raise UserError(f"{file.path}: {_KEY}{name}_token_id is no token")
    return token


def _sentencepiece(file: GGUFFile) -> Tokenizer:
    texts = _texts(file, "tokens")
    count = len(texts)
    scores = _numbers(file, "scores", count, 0.0).astype(np.float32).tolist()
    kinds = _numbers(file, "token_type", count, _NORMAL).astype(np.int64).tolist()
    if (bos := _special(file, "bos", count)) not in (None, BOS):
        raise UserError(f"{file.path}: its texts begin with token {bos}, and SentencePiece's with {BOS}")
    prefix = file.metadata.get(f"{_KEY}add_space_prefix", True) is not False
    remove = file.metadata.get(f"{_KEY}remove_extra_whitespaces", False) is True
    pieces = check_pieces(Pieces(texts, scores, kinds, prefix, remove), str(file.path))
    eos = _special(file, "eos", count)
    return SentencePieceTokenizer(pieces, (BOS, EOS if eos is None else eos))


def _byte_level(file: GGUFFile) -> Tokenizer:
    """Builds a byte-level tokenizer by writing a tokenizer.json for Hugging Face's library."""
    texts, pre = _texts(file, "tokens"), file.metadata.get(f"{_KEY}pre", "default")
    if pre not in _PATTERNS:
        raise UserError(f"{file.path}: {_KEY}pre is {str(pre)[:40]!r}, readable are {', '.join(_PATTERNS)}")
    kinds = _numbers(file, "token_type", len(texts), _NORMAL)
    bos, eos = _special(file, "bos", len(texts)), _special(file, "eos", len(texts))
    begins = file.metadata.get(f"{_KEY}add_bos_token", pre in _WHOLE_TOKENS_FIRST) is True and bos is not None
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) != len(texts):
        raise UserError(f"{file.path} is damaged: a token stands twice in its vocabulary")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": texts[i], "special": True, **flags}
        for i in np.flatnonzero((kinds != _NORMAL) & (kinds != _UNUSED)).tolist()
        if texts[i]
    ]
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": ids,
        "merges": _texts(file, "merges"),
        "ignore_merges": pre in _WHOLE_TOKENS_FIRST,
    }
    split = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in _PATTERNS[pre]
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    whole = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*split, level]},
        "post_processor": begin_with(texts[bos], bos) if begins and bos is not None else None,
        "decoder": level,
        "model": model,
    }
    try:
        return HuggingFaceTokenizer(file.path.name, json.dumps(whole), [] if eos is None else [eos])
    except Exception as error:  # whatever is wrong inside: `tokenizers` raises plain Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{file.path} has a damaged tokenizer ({reason})") from error
