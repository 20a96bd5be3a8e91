"""Texts to train on: named ones, which are fetched once and kept, and anybody's own.

A corpus is a stream of `Piece`s: text with the split it belongs to and whether a document starts there.
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmpy.data import python_docs, text_files
from llmpy.data.text_files import HoldOut, Piece, default_fraction
from llmpy.errors import UserError
from llmpy.utils.atomic_files import cache_dir

NAMES = ("python-docs", "shakespeare", "tinystories")

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SIZE = 1_115_394
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_VALIDATION = 32_768  # tokens, the first ones
TINYSTORIES_URL = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/"
    "TinyStories_all_data.tar.gz"
)
TINYSTORIES_SIZE = 1_608_001_638
TINYSTORIES_SHA256 = "26cf7605aca15bc4ea6fa637256400d9d01317b28ed296172b2d1dd160cd7699"
_TINYSTORIES_FILE = re.compile(r"(?:.*/)?data(\d\d)\.json")


@dataclass(frozen=True)
class Corpus:
    """A corpus: the source of its text, and the function that reads the text.

    `name` begins the names of its shards, `title` is for people, `fingerprint` changes with the text and its split.
    `pieces()` reads it, as often as it is called; `size` is about how many bytes it reads, for the progress.
    `first_tokens_validate`: so many tokens at the start are the validation split, whatever the pieces say.
    """

    name: str
    title: str
    fingerprint: str
    size: int
    pieces: Callable[[], Iterator[Piece]]
    first_tokens_validate: int = 0


def open_corpus(source: str, field: str = "text", val_fraction: float | None = None) -> Corpus:
    """A name of NAMES, or a file, folder or glob. Fetches what has to be fetched.

    `field` holds the text in lines of JSON; `val_fraction` of one's own text is held out (None: a tenth, less of much).
    UserError, in one line, for whatever is wrong with it.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UserError(f"a validation fraction of {val_fraction} is not between 0 and 1")
    if source == "python-docs":
        return _python_docs(val_fraction)
    if source not in NAMES:
        return _own_text(source, field, val_fraction)
    if val_fraction is not None:
        raise UserError(f"{source} has a validation split of its own: leave the validation fraction out")
    return _shakespeare() if source == "shakespeare" else _tinystories()


def _python_docs(val_fraction: float | None) -> Corpus:
    texts = python_docs.documents()
    size = sum(map(len, texts))
    fraction = default_fraction(size) if val_fraction is None else val_fraction
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()

    def pieces() -> Iterator[Piece]:
        hold_out = HoldOut(fraction, size)
        for text in texts:
            yield from hold_out.pieces_of(text, len(text))

    return Corpus("python_docs", "the Python manual", f"{digest} {fraction}", size, pieces)


def _shakespeare() -> Corpus:
    from llmpy.utils.download import download

    path = download(
        SHAKESPEARE_URL,
        cache_dir() / "tiny_shakespeare.txt",
        size=SHAKESPEARE_SIZE,
        sha256=SHAKESPEARE_SHA256,
        description="Tiny Shakespeare",
    )

    def pieces() -> Iterator[Piece]:
        # As llm.c has it: every speech is a document and keeps the blank line after it.
        speeches = path.read_text(encoding="utf-8").split("\n\n")
        for i, speech in enumerate(speeches):
            text = speech if i == len(speeches) - 1 else speech + "\n\n"
            yield Piece("train", text, True, len(text))

    return Corpus(
        "tiny_shakespeare", "Tiny Shakespeare", SHAKESPEARE_SHA256, SHAKESPEARE_SIZE, pieces, SHAKESPEARE_VALIDATION
    )


def _tinystories() -> Corpus:
    from llmpy.utils.download import download

    path = cache_dir() / "TinyStories_all_data.tar.gz"

    def pieces() -> Iterator[Piece]:
        download(TINYSTORIES_URL, path, size=TINYSTORIES_SIZE, sha256=TINYSTORIES_SHA256, description="TinyStories")
        yield from _tinystories_pieces(path)

    return Corpus("TinyStories", "TinyStories", TINYSTORIES_SHA256, TINYSTORIES_SIZE, pieces)


def _tinystories_pieces(path: Path) -> Iterator[Piece]:
    """The archive's 50 files as they come, nothing unpacked to the disk. The first of them validates, as in llm.c."""
    import tarfile

    read = 0
    with open(path, "rb") as compressed, tarfile.open(fileobj=compressed, mode="r|gz") as archive:
        for member in archive:
            name = _TINYSTORIES_FILE.fullmatch(member.name)
            file = archive.extractfile(member) if name else None
            if name is None or file is None:
                continue
            number = int(name[1])
            stories = json.load(file)
            # The order inside a file is llm.c's, which counts the files of each split from 0.
            random.Random(1337 + max(number - 1, 0)).shuffle(stories)
            here = compressed.tell() - read
            read += here
            for story in stories:
                text = story["story"].strip()
                if text:
                    yield Piece("val" if number == 0 else "train", text, True, here // len(stories))


def _own_text(source: str, field: str, val_fraction: float | None) -> Corpus:
    if not os.path.exists(os.path.expanduser(source)) and re.fullmatch(r"[\w-]+", source):
        raise UserError(f"no corpus and no file {source!r}: name a file, a folder, a glob, or {', '.join(NAMES)}")
    files = text_files.find_files(source)
    size = sum(path.stat().st_size for path in files)
    stem = re.sub(r"[^\w-]+", "_", files[0].stem if len(files) == 1 else Path(source).stem).strip("_") or "text"
    fraction = default_fraction(size) if val_fraction is None else val_fraction
    return Corpus(
        name=stem[:64],
        title=str(source) if len(files) == 1 else f"{source} ({len(files)} files)",
        fingerprint=f"{text_files.fingerprint(files)} {field} {fraction}",
        size=size,
        pieces=lambda: text_files.read_pieces(files, field, fraction),
    )
