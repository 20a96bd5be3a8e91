"""The vocabulary of a SentencePiece model (Kudo 2018) in its three files: `.model`, llama2.c's tokenizer.bin, and
tokenizer.json.

Here are bytes on one side and `Pieces` on the other. Of SentencePiece's kinds of models, only byte-pair encoding of
text as it is (no normalisation) is read: what the Llama family uses.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpy.errors import UserError
from llmpy.utils.atomic_files import cache_dir
from llmpy.utils.download import download

SPACE = "\u2581"  # stands for a space in a piece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # sentencepiece_model.proto
UNK, BOS, EOS = 0, 1, 2  # the ids that SentencePiece gives them, and llama2.c takes for granted
_BPE = 2  # model_type in trainer_spec
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# Llama 2's, as llama2.c has it in its repository.
LLAMA2_URL = (
    "https://raw.githubusercontent.com/karpathy/llama2.c/350e04fe35433e6d2941dce5a1f53308f87058eb/tokenizer.model"
)
LLAMA2_SIZE = 499_723
LLAMA2_SHA256 = "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


@dataclass(frozen=True)
class Pieces:
    """Pieces by id: text (U+2581 for a space), score (the highest is merged first) and kind."""

    texts: list[str]
    scores: list[float]
    kinds: list[int]
    add_dummy_prefix: bool = True  # a text is encoded as if a space stood before it
    remove_extra_whitespaces: bool = False  # at both ends, and all but one of several spaces

    def tokens(self) -> list[bytes]:
        """The bytes that each id stands for."""
        return [
            bytes([int(text[3:5], 16)]) if kind == BYTE else text.replace(SPACE, " ").encode()
            for text, kind in zip(self.texts, self.kinds, strict=True)
        ]

    def id_of(self, text: str) -> int | None:
        return next((i for i, other in enumerate(self.texts) if other == text), None)


def check_pieces(pieces: Pieces, where: str) -> Pieces:
    """UserError, beginning with `where`, for what is no vocabulary to encode with."""
    texts, kinds = pieces.texts, pieces.kinds
    if len(texts) < 4 or kinds.count(UNKNOWN) != 1:
        raise UserError(f"{where}: no SentencePiece vocabulary: {len(texts)} pieces, {kinds.count(UNKNOWN)} unknown")
    if len(set(texts)) != len(texts) or "" in texts:
        raise UserError(f"{where}: damaged: a piece is empty or stands twice")
    if not all(math.isfinite(score) for score in pieces.scores):
        raise UserError(f"{where}: damaged: a score is not a number")
    for i, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if not NORMAL <= kind <= BYTE or (kind == BYTE and not _BYTE_PIECE.fullmatch(text)) or "\0" in text:
            raise UserError(f"{where}: damaged: piece {i} ({text[:40]!r}) is of kind {kind}")
    if 0 < (held := kinds.count(BYTE)) < 256:
        raise UserError(f"{where}: damaged: it has {held} of the 256 bytes")
    return pieces


def llama2_model() -> Path:
    """Llama 2's tokenizer.model, in the cache. Raises UserError where it cannot be had."""
    return download(
        LLAMA2_URL,
        cache_dir() / "llama2_tokenizer.model",
        size=LLAMA2_SIZE,
        sha256=LLAMA2_SHA256,
        description="Llama 2's tokenizer",
    )


# ---- llama2.c's tokenizer.bin --------------------------------------------------------------------------------------


def parse_llama2c(data: bytes, where: str) -> Pieces:
    """u32 longest piece, then for each id: float32 score, u32 length, bytes. The file does not say how many there are.

    A space is a space there, and id 1 and 2 have newlines around them. UserError, beginning with `where`.
    """
    texts: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        if at + 8 > len(data):
            raise UserError(f"{where}: cut short in the middle of token {len(texts)}: copy it again")
        score, length = struct.unpack_from("<fI", data, at)
        raw = data[at + 8 : at + 8 + length]
        if len(raw) < length:
            raise UserError(f"{where}: cut short or damaged at token {len(texts)}: copy it again")
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: damaged: token {len(texts)} is not UTF-8") from error
        scores.append(score)
        at += 8 + length
    longest = max((len(text.encode()) for text in texts), default=0)
    if len(data) < 4 or int.from_bytes(data[:4], "little") != longest:
        raise UserError(f"{where}: damaged: its longest token has {longest} bytes, it says otherwise")
    texts = [text.strip("\n") if i in (BOS, EOS) else text.replace(" ", SPACE) for i, text in enumerate(texts)]
    kinds = [BYTE if _BYTE_PIECE.fullmatch(text) else NORMAL for text in texts]
    kinds[:3] = (UNKNOWN, CONTROL, CONTROL)[: len(kinds)]
    return check_pieces(Pieces(texts, scores, kinds), where)


def write_llama2c(pieces: Pieces) -> bytes:
    """The inverse, byte for byte."""
    if pieces.kinds[:3] != [UNKNOWN, CONTROL, CONTROL]:
        raise UserError("llama2.c's tokenizer format needs <unk>, <s> and </s> as ids 0, 1 and 2")
    if not pieces.add_dummy_prefix or pieces.remove_extra_whitespaces:
        raise UserError("llama2.c puts a space before every text and removes none, and this tokenizer does otherwise")
    texts = [
        f"\n{text}\n".encode() if i in (BOS, EOS) else text.replace(SPACE, " ").encode()
        for i, text in enumerate(pieces.texts)
    ]
    rows = (struct.pack("<fI", score, len(text)) + text for score, text in zip(pieces.scores, texts, strict=True))
    return struct.pack("<I", max(map(len, texts))) + b"".join(rows)


# ---- SentencePiece's .model: a message of protobuf -----------------------------------------------------------------


def parse_model(data: bytes, where: str) -> Pieces:
    """A `.model` file -> its pieces. UserError, beginning with `where`, for damage and for other kinds of models.

    The fields are those of sentencepiece_model.proto; what does not bear on encoding is passed over.
    """
    texts, scores, kinds = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                texts.append(piece[1].decode())
                scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
                kinds.append(int(piece.get(3, NORMAL)))
            elif number == 2:
                trainer |= dict(_fields(value))
            elif number == 3:
                normalizer |= dict(_fields(value))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{where}: damaged, or no SentencePiece model ({' '.join(str(error).split())[:80]})") from error
    if trainer.get(3, 1) != _BPE:
        raise UserError(
            f"{where}: a SentencePiece model of kind {trainer.get(3, 1)}, and only byte-pair encoding is read"
        )
    if normalizer.get(2, b"") or normalizer.get(5, 1) != 1:
        raise UserError(f"{where}: a SentencePiece model that changes text before it is encoded, which no Llama does")
    return check_pieces(Pieces(texts, scores, kinds, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))), where)


def write_model(pieces: Pieces) -> bytes:
    """The inverse: what SentencePiece needs to encode, and no notes on how it was trained."""
    out = bytearray()
    for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True):
        fields = _field(1, text.encode()) + _key(2, _FIXED32) + struct.pack("<f", score) + _field(3, kind)
        out += _field(1, fields)
    ids = {40: pieces.kinds.index(UNKNOWN), 41: BOS, 42: EOS, 43: -1}
    trainer = _field(3, _BPE) + _field(35, int(BYTE in pieces.kinds))
    trainer += b"".join(_field(number, i) for number, i in ids.items())
    switches = {3: pieces.add_dummy_prefix, 4: pieces.remove_extra_whitespaces, 5: True}
    normalizer = _field(1, b"identity") + b"".join(_field(number, int(on)) for number, on in switches.items())
    return bytes(out) + _field(2, trainer) + _field(3, normalizer)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field of a message. ValueError where it is cut or none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif not size:
            raise ValueError(f"field {number} of wire type {wire}")
        if at + size > len(data):
            raise ValueError(f"field {number} is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends): seven bits a byte, the lowest first; at most ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _key(number: int, wire: int) -> bytes:
    return _encoded(number << 3 | wire)


def _encoded(value: int) -> bytes:
    value &= 2**64 - 1  # a negative number is written as its complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _key(number, _VARINT) + _encoded(value)
    return _key(number, _BYTES) + _encoded(len(value)) + value


# ---- tokenizer.json ------------------------------------------------------------------------------------------------

_PREFIX = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_REMOVE = [
    {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
]


def _normalizer(add_dummy_prefix: bool, remove_extra_whitespaces: bool) -> dict[str, Any]:
    steps = [*_REMOVE * remove_extra_whitespaces, *[_PREFIX] * add_dummy_prefix, _REPLACE]
    return {"type": "Sequence", "normalizers": steps}


def write_json(pieces: Pieces) -> str:
    """A tokenizer.json that gives the same tokens: merges in the order of the scores of what they make."""
    ids = {text: i for i, text in enumerate(pieces.texts)}
    merges = []
    for i, (text, kind) in enumerate(zip(pieces.texts, pieces.kinds, strict=True)):
        if kind in (NORMAL, USER_DEFINED):
            pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
            known = sorted((ids[a], ids[b]) for a, b in pairs if a in ids and b in ids)
            merges += [(-pieces.scores[i], a, b) for a, b in known]
    merges.sort(key=lambda merge: merge[0])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [i for i, kind in enumerate(pieces.kinds) if kind in (UNKNOWN, CONTROL)]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if pieces.add_dummy_prefix else []
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "continuing_subword_prefix", "end_of_word_suffix")),
        "unk_token": pieces.texts[pieces.kinds.index(UNKNOWN)],
        "fuse_unk": True,
        "byte_fallback": BYTE in pieces.kinds,
        "ignore_merges": False,
        "vocab": ids,
        "merges": [[pieces.texts[a], pieces.texts[b]] for _, a, b in merges],
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": pieces.texts[i], **flags} for i in special],
        "normalizer": _normalizer(pieces.add_dummy_prefix, pieces.remove_extra_whitespaces),
        "pre_tokenizer": None,
        "post_processor": begin_with(pieces.texts[BOS], BOS),
        "decoder": {"type": "Sequence", "decoders": [*decoders, {"type": "Fuse"}, *strip]},
        "model": model,
    }
    return json.dumps(whole, ensure_ascii=False)


def begin_with(text: str, token: int) -> dict[str, Any]:
    """The post-processor of a tokenizer.json that puts a token before every text."""
    start, a, b = (
        {"SpecialToken": {"id": text, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    tokens = {text: {"id": text, "ids": [token], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [start, a], "pair": [start, a, start, b], "special_tokens": tokens}


def parse_json(source: dict[str, Any], where: str) -> Pieces | None:
    """A tokenizer.json of that form -> the pieces; None for every other. KeyError, TypeError, ... for what is none.

    The scores are not in it: what is merged gets the negative of its rank, which encodes the same.
    """
    model = source["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback") or source.get("pre_tokenizer"):
        return None
    switches = [(prefix, remove) for prefix in (True, False) for remove in (True, False)]
    found = [pair for pair in switches if source.get("normalizer") == _normalizer(*pair)]
    if not found:
        return None
    vocabulary: dict[str, int] = model["vocab"]
    added = {token["content"]: token for token in source.get("added_tokens") or []}
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[text] for text in texts] != list(range(len(texts))) or not added.keys() <= vocabulary.keys():
        return None
    ranks: dict[str, int] = {}
    for merge in model["merges"]:
        a, b = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(a + b, len(ranks))
    kinds = []
    for text in texts:
        if text == model.get("unk_token"):
            kinds.append(UNKNOWN)
        elif text in added:
            kinds.append(CONTROL if added[text]["special"] else USER_DEFINED)
        else:
            kinds.append(BYTE if _BYTE_PIECE.fullmatch(text) else NORMAL)
    scores = [
        0.0 if kind != NORMAL else -float(ranks.get(text, len(ranks))) for text, kind in zip(texts, kinds, strict=True)
    ]
    return check_pieces(Pieces(texts, scores, kinds, *found[0]), where)
