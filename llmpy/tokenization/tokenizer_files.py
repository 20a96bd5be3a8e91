"""The two files a vocabulary is kept in: Hugging Face's tokenizer.json and llm.c's gpt2_tokenizer.bin.

Here are bytes on one side and (tokens, end_of_text) on the other: the byte string of each id, and the id that separates
documents. `llmpy.tokenization.base` makes tokenizers of them.
"""

import json
import struct
from itertools import pairwise
from typing import Any

from llmpy.errors import UserError

END_OF_TEXT = "<|endoftext|>"
LLMC_MAGIC = 20240328
LLMC_HEADER = 256  # uint32s
Vocabulary = tuple[list[bytes], int | None]

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_MODEL_SWITCHES = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)


def byte_characters() -> list[str]:
    """Returns the character of each byte in a byte-level vocabulary: itself if visible, else one from 256 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    characters, hidden = [], 0
    for byte in range(256):
        characters.append(chr(byte if byte in visible else 256 + hidden))
        hidden += byte not in visible
    return characters


def piece_to_bytes(piece: str) -> bytes | None:
    """ "Ġthe" -> b" the"; None if a character stands for no byte."""
    try:
        return bytes(_BYTE_OF[character] for character in piece)
    except KeyError:
        return None


_CHARACTERS = byte_characters()
_BYTE_OF = {character: byte for byte, character in enumerate(_CHARACTERS)}


def derive_merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The two parts that each token of more than a byte is merged from, in the order of the tokens.

    They follow from the ranks: merging what ranks lowest, as encoding does, leads to the two last parts of a token.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            lowest = min(pairs)
            if lowest == rank:
                break
            i = pairs.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) != 2:
            raise UserError(
                f"token {rank} ({token!r}) cannot be merged from two others: this is no byte-pair vocabulary"
            )
        merges.append((parts[0], parts[1]))
    return merges


def write_json(tokens: list[bytes], end_of_text: int | None) -> str:
    """A byte-level byte-pair vocabulary, end-of-text last if there is one, as a tokenizer.json."""
    plain = tokens if end_of_text is None else tokens[:end_of_text]

    def piece(token: bytes) -> str:
        return "".join([_CHARACTERS[byte] for byte in token])

    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocabulary = {piece(token): i for i, token in enumerate(plain)}
    added = []
    if end_of_text is not None:
        added = [{"id": end_of_text, "content": END_OF_TEXT, **special}]
        vocabulary[END_OF_TEXT] = end_of_text
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
        "vocab": vocabulary,
        "merges": [[piece(a), piece(b)] for a, b in derive_merges(plain)],
    }
    whole: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
    }
    whole |= {"pre_tokenizer": _BYTE_LEVEL, "post_processor": _BYTE_LEVEL, "decoder": _BYTE_LEVEL, "model": model}
    return json.dumps(whole, ensure_ascii=False)


def parse_json(source: dict[str, Any]) -> Vocabulary | None:
    """A tokenizer.json -> the vocabulary, if ids are the ranks of the merges and text is cut as GPT-2 does.

    None for every other kind. KeyError, TypeError, ... for what is no tokenizer.json at all.
    """
    model, cutter = source["model"], source.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or any(model.get(switch) for switch in _MODEL_SWITCHES):
        return None
    if source.get("normalizer") or any(cutter.get(key, True) != _BYTE_LEVEL[key] for key in _BYTE_LEVEL):
        return None
    ids: dict[str, int] = dict(model["vocab"])
    end_of_text = None
    if added := source.get("added_tokens"):
        if len(added) != 1 or added[0]["content"] != END_OF_TEXT or ids.pop(END_OF_TEXT, len(ids)) != added[0]["id"]:
            return None
        end_of_text = added[0]["id"]
        if end_of_text != len(ids):
            return None
    pieces = sorted(ids, key=ids.__getitem__)
    tokens = [token for piece in pieces if (token := piece_to_bytes(piece)) is not None]
    if [ids[piece] for piece in pieces] != list(range(len(tokens))):
        return None
    if len(tokens) < 256 or any(len(token) != 1 for token in tokens[:256]):
        return None
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    known = {piece: i for i, piece in enumerate(pieces)}
    if len(merges) != len(pieces) - 256:
        return None
    for rank, (a, b) in enumerate(merges, 256):
        if a + b != pieces[rank] or known.get(a, rank) >= rank or known.get(b, rank) >= rank:
            return None
    return (tokens if end_of_text is None else [*tokens, END_OF_TEXT.encode()]), end_of_text


def write_llmc(tokens: list[bytes], end_of_text: int | None) -> bytes:
    """llm.c's gpt2_tokenizer.bin: 256 uint32 (magic, version, tokens, end-of-text), then length and bytes of each."""
    if end_of_text is None:
        raise UserError("llm.c's tokenizer format needs an end-of-text token, which this tokenizer has not")
    for i, token in enumerate(tokens):
        if not 1 <= len(token) <= 255:
            raise UserError(f"llm.c's tokenizer format holds tokens of 1 to 255 bytes; token {i} has {len(token)}")
    header = struct.pack(f"<4I{4 * (LLMC_HEADER - 4)}x", LLMC_MAGIC, 2, len(tokens), end_of_text)
    return header + b"".join([bytes([len(token)]) + token for token in tokens])


def parse_llmc(data: bytes, where: str) -> Vocabulary:
    """The inverse. UserError, beginning with `where`, for a damaged file."""
    if len(data) < 4 * LLMC_HEADER:
        raise UserError(f"{where}: cut short, {len(data)} bytes: copy it again")
    magic, version, count, end_of_text = struct.unpack_from("<4I", data)
    if magic != LLMC_MAGIC or version not in (1, 2):
        raise UserError(
            f"{where}: magic number {magic}, version {version}, not llm.c's tokenizer ({LLMC_MAGIC}, 1 or 2)"
        )
    if version == 1:
        end_of_text = 50256
    tokens, at = [], 4 * LLMC_HEADER
    while at < len(data):
        length = data[at]
        tokens.append(data[at + 1 : at + 1 + length])
        at += 1 + length
        if length == 0 or at > len(data):
            raise UserError(f"{where}: damaged at token {len(tokens) - 1}: copy it again")
    if len(tokens) != count or end_of_text != count - 1:
        raise UserError(
            f"{where}: {len(tokens)} tokens where its header says {count}, end-of-text {end_of_text}: copy it again"
        )
    plain = set(tokens[:end_of_text])
    if len(plain) != end_of_text or any(bytes([byte]) not in plain for byte in range(256)):
        raise UserError(f"{where}: a token stands twice or a byte has none: damaged, or no byte-level vocabulary")
    return tokens, end_of_text


def valid_text(text: str) -> str:
    """Text that UTF-8 can hold: halves of surrogate pairs, as a terminal or JSON may give, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
