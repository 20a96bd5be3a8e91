"""Text to token ids and back: raw bytes, GPT-2's vocabulary, a byte-pair encoding trained on the text, others' files.

All share one interface, `Tokenizer`. A vocabulary is a list of byte strings, so that decoding is the same for all;
encoding is left to the fastest library that gives exactly these tokens. The end-of-text token is put between documents
by those who prepare data; it never comes from encoding text, whatever the text says.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from llmpy.errors import UserError
from llmpy.tokenization import sentencepiece_files, training
from llmpy.tokenization import tokenizer_files as files
from llmpy.tokenization.sentencepiece_files import BOS, EOS, Pieces
from llmpy.tokenization.tokenizer_files import END_OF_TEXT, valid_text
from llmpy.utils.atomic_files import cache_dir, write_atomic

NAMES = ("bytes", "gpt2", "llama2")
SPECS = (
    f"{', '.join(NAMES)}, bpe:N or sentencepiece:N (N tokens, trained on the text) or a file (tokenizer.json,"
    " tokenizer.model, tokenizer.bin of llama2.c, gpt2_tokenizer.bin)"
)
# How GPT-2 cuts text before it merges bytes (Radford et al. 2019, encoder.py): contractions, words, numbers, the rest.
# The possessive ++ and the case of white space at the end, as tiktoken has them, change no match but save backtracking.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
GPT2_VOCAB_SIZE = 50257
_WORTH_A_THREAD = 1 << 18  # characters
_GPT2_FINGERPRINT = "90952aff06353cb4"
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>")  # of GPT-2 and its descendants, of Llama 3, of Llama 2
_STOP_NAMES = (*_END_OF_TEXT_NAMES, "<|eot_id|>", "<|im_end|>")  # and the ends of a turn in a chat


class Tokenizer(ABC):
    """A vocabulary and the two ways through it.

    `tokens[id]` is the bytes of a token, `end_of_text` the id that separates documents (None if there is none), `bos`
    the one that a prompt begins with (None: with its text), `stop_ids` those that end what a model writes, `name` what
    `--tokenizer` would take: "bytes", "gpt2", "bpe:1024" or a file's name.
    """

    def __init__(
        self,
        name: str,
        tokens: list[bytes],
        end_of_text: int | None,
        bos: int | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        self.name, self.tokens, self.end_of_text, self.bos = name, tokens, end_of_text, bos
        self._stop_ids = tuple(stop_ids)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys([*([] if self.end_of_text is None else [self.end_of_text]), *self._stop_ids]))

    @property
    def special_tokens(self) -> dict[str, int]:
        """The texts that a chat template writes where it means these tokens; `encode` takes them for text."""
        return {} if self.end_of_text is None else {self.tokens[self.end_of_text].decode(): self.end_of_text}

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """text -> ids, uint32 [n]. Text that looks like a special token is encoded as the text it is."""

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """Encodes each of the texts, on several threads (default: all processors)."""
        workers = threads or os.cpu_count() or 1
        # Groups of texts: handing a short one to another thread takes longer than encoding it.
        groups: list[list[str]] = [[]]
        size = 0
        for text in texts:
            if size >= _WORTH_A_THREAD:
                groups.append([])
                size = 0
            groups[-1].append(text)
            size += len(text)
        if workers == 1 or len(groups) == 1:
            return [ids for group in groups for ids in self._encode_group(group)]
        with ThreadPoolExecutor(workers) as pool:
            return [ids for part in pool.map(self._encode_group, groups) for ids in part]

    def _encode_group(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """ids -> the bytes they stand for, perhaps with a character cut at either end. ValueError for an unknown id."""
        pieces, previous = [], None
        for i in ids:
            pieces.append(self.bytes_after(previous, int(i)))
            previous = int(i)
        return b"".join(pieces)

    def bytes_after(self, previous: int | None, token: int) -> bytes:
        """Returns a token's bytes behind the token `previous`, which is None at the beginning of a text."""
        return self.token_bytes(token)

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < len(self.tokens):
            raise ValueError(f"token {token} is not in the vocabulary of {len(self.tokens)}")
        return self.tokens[token]

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> text; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def fingerprint(self) -> str:
        """16 hex digits that change with any token."""
        digest = hashlib.sha256(repr(self.end_of_text).encode())
        for token in self.tokens:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()[:16]

    def to_json(self) -> str:
        """The tokenizer.json of Hugging Face's `tokenizers`, which `Tokenizer.load` and `transformers` read."""
        return files.write_json(self.tokens, self.end_of_text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a tokenizer.json or, if the name ends in .bin, llm.c's format (vocabulary only)."""
        suffix = Path(path).suffix
        data = self._to_binary(suffix) if suffix in (".bin", ".model") else self.to_json().encode()
        with write_atomic(path) as file:
            file.write(data)

    def _to_binary(self, suffix: str) -> bytes:
        if suffix == ".model":
            raise UserError(f"the tokenizer {self.name} is no SentencePiece model: save it as tokenizer.json")
        return files.write_llmc(self.tokens, self.end_of_text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """A file of `save`, `tokenizers`, SentencePiece, llm.c or llama2.c. UserError if it is none or damaged."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        if data[:4] == files.LLMC_MAGIC.to_bytes(4, "little"):
            return _of_vocabulary(*files.parse_llmc(data, str(path)))
        if data.lstrip()[:1] == b"{":
            return _of_json(data, path)
        if path.suffix == ".model":
            return SentencePieceTokenizer(sentencepiece_files.parse_model(data, str(path)))
        if path.suffix == ".bin":
            return SentencePieceTokenizer(sentencepiece_files.parse_llama2c(data, str(path)))
        raise UserError(
            f"{path} is no tokenizer that llm.py knows: give a tokenizer.json, SentencePiece's .model, llm.c's"
            " gpt2_tokenizer.bin or llama2.c's tokenizer.bin"
        )

    @staticmethod
    def from_spec(spec: str, texts: Iterable[str] = ()) -> Tokenizer:
        """Returns the tokenizer that `--tokenizer` names; bpe:N is trained on `texts`."""
        if spec == "bytes":
            return ByteTokenizer()
        if spec == "gpt2":
            return gpt2()
        if spec == "llama2":
            return llama2()
        if training.is_trained(spec):
            train = train_sentencepiece if spec.startswith("sentencepiece:") else train_bpe
            return train(texts, training.trained_size(spec))
        if not os.path.exists(spec):
            raise UserError(f"no tokenizer {spec!r}: give {SPECS}")
        return Tokenizer.load(spec)


class ByteTokenizer(Tokenizer):
    """The 256 bytes and end-of-text: nothing to train, nothing unknown, one token a character of English."""

    def __init__(self) -> None:
        super().__init__("bytes", [bytes([b]) for b in range(256)] + [END_OF_TEXT.encode()], 256)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(valid_text(text).encode(), np.uint8).astype(np.uint32)


class BytePairTokenizer(Tokenizer):
    """Byte-pair encoding (Sennrich 2016) of bytes, cut by GPT-2's pattern, a token's id being the rank of its merge.

    `tokens` are the 256 bytes in any order, then each merge's result in the order of merging, then end-of-text.
    tiktoken does the encoding, by these ranks alone; the merges themselves follow from them.
    """

    def __init__(self, name: str, tokens: list[bytes], end_of_text: int | None) -> None:
        import tiktoken

        super().__init__(name, tokens, end_of_text)
        ranks = {token: rank for rank, token in enumerate(tokens) if rank != end_of_text}
        special = {} if end_of_text is None else {END_OF_TEXT: end_of_text}
        self._encoding = tiktoken.Encoding(name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)

    def encode(self, text: str) -> np.ndarray:
        text = valid_text(text)
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # the engine of the pattern gives up in white space of half a million characters
            cuts = [match.end() - 1 for match in re.finditer(r"\s{100000,}(?=\S)", text)]
            if not cuts:
                raise
            # The pattern cuts there in any case: the last of white space goes with what follows.
            parts = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
            return np.concatenate([self._encoding.encode_to_numpy(part, disallowed_special=()) for part in parts])

    def _encode_group(self, texts: list[str]) -> list[np.ndarray]:
        """Encodes all texts in one call, joined by end-of-text: a call a text would cost as much as the encoding."""
        if not texts or self.end_of_text is None or any(END_OF_TEXT in text for text in texts):
            return super()._encode_group(texts)
        try:
            ids = self._encoding.encode_to_numpy(valid_text(END_OF_TEXT.join(texts)), allowed_special={END_OF_TEXT})
        except ValueError:  # too much white space somewhere: `encode` knows what to do
            return super()._encode_group(texts)
        cuts = [-1, *np.flatnonzero(ids == self.end_of_text).tolist(), len(ids)]
        return [ids[a + 1 : b] for a, b in pairwise(cuts)]


class HuggingFaceTokenizer(Tokenizer):
    """A byte-level tokenizer.json that others have made, with a pattern or normalisation of its own."""

    def __init__(self, name: str, source: str, stop_ids: Iterable[int] = ()) -> None:
        import tokenizers

        self._source = source
        self._tokenizer = tokenizers.Tokenizer.from_str(source)
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        ids = self._tokenizer.get_vocab()
        added_tokens = self._tokenizer.get_added_tokens_decoder()
        added = {token.content for token in added_tokens.values()}
        self._special = {token.content: i for i, token in added_tokens.items() if token.special}
        tokens = [b""] * (max(ids.values(), default=-1) + 1)
        for piece, i in ids.items():
            decoded = None if piece in added else files.piece_to_bytes(piece)
            tokens[i] = piece.encode() if decoded is None else decoded
        end_of_text = next((ids[text] for text in _END_OF_TEXT_NAMES if text in ids), None)
        first = self._tokenizer.encode("").ids  # what the file puts before every text
        stop_ids = [*stop_ids, *(ids[text] for text in _STOP_NAMES if text in ids)]
        super().__init__(name, tokens, end_of_text, first[0] if len(first) == 1 else None, stop_ids)

    @property
    def special_tokens(self) -> dict[str, int]:
        return self._special

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(valid_text(text), add_special_tokens=False).ids, np.uint32)

    def to_json(self) -> str:
        return self._source


class SentencePieceTokenizer(Tokenizer):
    """The byte-pair encoding of SentencePiece, as Llama 2 and llama2.c have it; the library does the encoding.

    A text is encoded as if a space stood before it, and the first token of a text is decoded without it. BOS stands
    between documents, as llama2.c puts it; a model may end what it writes with EOS, too.
    """

    def __init__(self, pieces: Pieces, stop_ids: Iterable[int] = (BOS, EOS)) -> None:
        import sentencepiece

        self.pieces = pieces
        name = f"sentencepiece:{len(pieces.texts)}"
        super().__init__(name, pieces.tokens(), BOS, BOS, stop_ids)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_files.write_model(pieces))
        except RuntimeError as error:
            raise UserError(f"SentencePiece refuses the vocabulary: {' '.join(str(error).split())}") from error

    @property
    def special_tokens(self) -> dict[str, int]:
        kinds = self.pieces.kinds
        return {text: i for i, text in enumerate(self.pieces.texts) if kinds[i] == sentencepiece_files.CONTROL}

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._processor.encode(valid_text(text)), np.uint32)

    def bytes_after(self, previous: int | None, token: int) -> bytes:
        at_start = self.pieces.add_dummy_prefix and previous in (None, BOS)
        return self.token_bytes(token).removeprefix(b" ") if at_start else self.token_bytes(token)

    def to_json(self) -> str:
        return sentencepiece_files.write_json(self.pieces)

    def _to_binary(self, suffix: str) -> bytes:
        """llama2.c's tokenizer.bin, or SentencePiece's .model."""
        return (sentencepiece_files.write_model if suffix == ".model" else sentencepiece_files.write_llama2c)(
            self.pieces
        )


class StreamDecoder:
    """Tokens in, text out as soon as it is whole: a character that lies in several tokens waits for its last byte.

    `previous` is the token before the first one that is fed, None where a text begins.
    """

    def __init__(self, tokenizer: Tokenizer, previous: int | None = None) -> None:
        self._tokenizer, self._previous = tokenizer, previous
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        data = self._tokenizer.bytes_after(self._previous, int(token))
        self._previous = int(token)
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Returns the rest at the end: "", or U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)


def gpt2() -> Tokenizer:
    """GPT-2's 50,257 tokens, from tiktoken's cache ($TIKTOKEN_CACHE_DIR, else below ours) or the network."""
    import tiktoken

    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    if folder is None:  # tiktoken's own default is a temporary folder, gone after a restart
        folder = os.environ["TIKTOKEN_CACHE_DIR"] = str(cache_dir() / "tiktoken")
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot get GPT-2's vocabulary from tiktoken ({type(error).__name__}; its cache is {folder}): run once "
            f"with a network, or set TIKTOKEN_CACHE_DIR to a filled cache, or give --tokenizer FILE (tokenizer.json, "
            f"gpt2_tokenizer.bin), bytes or bpe:N"
        ) from error
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)]
    return BytePairTokenizer("gpt2", tokens, encoding.eot_token)


def llama2() -> Tokenizer:
    """Llama 2's 32,000 tokens, from our cache or the network."""
    tokenizer = Tokenizer.load(sentencepiece_files.llama2_model())
    tokenizer.name = "llama2"
    return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of bytes, of at most `vocab_size` tokens, trained on the texts."""
    tokens = training.byte_pair_tokens(texts, vocab_size - 1)
    return BytePairTokenizer(f"bpe:{len(tokens) + 1}", [*tokens, END_OF_TEXT.encode()], len(tokens))


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """SentencePiece's byte-pair encoding, of `vocab_size` tokens, trained on the texts as llama2.c trains it.

    What it encodes keeps all spaces, as in llama2.c's `run`, where the model that comes out of training drops some.
    """
    pieces = training.sentencepiece_pieces(texts, vocab_size)
    return SentencePieceTokenizer(replace(pieces, remove_extra_whitespaces=False))


def _of_vocabulary(tokens: list[bytes], end_of_text: int | None) -> Tokenizer:
    """The tokenizer of a byte-level vocabulary whose ids are the ranks of its merges."""
    plain = ByteTokenizer()
    if (tokens, end_of_text) == (plain.tokens, plain.end_of_text):
        return plain
    tokenizer = BytePairTokenizer(f"bpe:{len(tokens)}", tokens, end_of_text)
    if len(tokens) == GPT2_VOCAB_SIZE and tokenizer.fingerprint() == _GPT2_FINGERPRINT:
        tokenizer.name = "gpt2"
    return tokenizer


def _of_json(data: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json: ours where that gives the same tokens, else the one of `tokenizers`."""
    try:
        source = json.loads(data)
        if (vocabulary := files.parse_json(source)) is not None:
            return _of_vocabulary(*vocabulary)
        if (pieces := sentencepiece_files.parse_json(source, str(path))) is not None:
            return SentencePieceTokenizer(pieces)
        if "ByteLevel" in json.dumps(source.get("decoder")):
            return HuggingFaceTokenizer(path.name, data.decode())
    except UserError:
        raise
    except Exception as error:  # whatever is wrong inside: `tokenizers` raises plain Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} is damaged or no tokenizer.json ({reason})") from error
    raise UserError(
        f"{path}: only byte-level tokenizers (GPT-2, Llama 3, SmolLM) and SentencePiece's (Llama 2) are read from a"
        " tokenizer.json: is there a tokenizer.model?"
    )
