"""Somebody's own text: plain files, JSON lines, folders and globs, read in pieces and split to train and validate.

A plain file (.txt, .md, anything else that is UTF-8) is one document, or several with a line `<|endoftext|>` between
them, as the TinyStories files have it. In a .jsonl file each line is a document. Nothing is read whole that can be
read in pieces, so that a file may be larger than the memory.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from llmpy.errors import UserError

SUFFIXES = (".txt", ".md", ".jsonl")  # what a folder is searched for
BLOCK = 1 << 20  # bytes read at a time from a plain file
WINDOW = 1 << 16  # how far past the wished-for place a document may be cut, in bytes or characters
MAX_DEFAULT_VALIDATION = 5_000_000  # bytes; more text than this only makes validation slower

# A place where cutting a text changes no token: before a newline that something other than white space follows. In
# GPT-2's pattern only runs of white space hold newlines, and such a run leaves its last character to what follows.
# The bytes after the newline: letters, digits, and lead bytes of UTF-8 under which Unicode has no white space.
_SAFE_CUT = re.compile(rb"(?:\r\n|(?<!\r)\n)(?=[0-9A-Za-z\xc3-\xe0\xe4-\xf4]|\xe3[\x81-\xbf])")
_SEPARATOR_LINE = re.compile(r"^<\|endoftext\|>[ \t]*$", re.MULTILINE)
# Where a document is cut for validation, the best kind of place first.
_BREAKS = (rb"\n<\|endoftext\|>[ \t]*\r?\n", rb"\n[ \t]*\r?\n", rb"\n", rb"[ \t]", rb"(?=[\x00-\x7f\xc0-\xff])")
_TEXT_BREAKS = (r"\n[ \t]*\n", r"\n", r"[ \t]", r"")

Split = Literal["train", "val"]


class Piece(NamedTuple):
    """A stretch of text of one split, at most a block or a document long."""

    split: Split
    text: str
    starts_document: bool  # or the part of one that validates
    source_bytes: int  # how much of the corpus's size it accounts for, for the progress
    is_tail: bool = False  # what starts is such a part: the document has been counted


@dataclass
class HoldOut:
    """Decides what is held out for validation: `fraction` of `total` (bytes), the same way each time.

    A document larger than half of what is to be held out gives its own tail; of the smaller ones every so-many-th goes
    whole, so that a long list of them is represented evenly.
    """

    fraction: float
    total: int
    _seen: int = 0
    _held_out: int = 0

    def gives_tail(self, size: int) -> bool:
        return size > self.total * self.fraction / 2

    def takes(self, size: int) -> bool:
        """Whether the next small document is for validation."""
        self._seen += size
        if self._held_out + size > self.fraction * self._seen:
            return False
        self._held_out += size
        return True

    def pieces_of(self, text: str, source_bytes: int) -> Iterator[Piece]:
        """A document in memory, none if it is empty."""
        if self.gives_tail(len(text)):
            cut = cut_text(text, round(len(text) * (1 - self.fraction)))
            yield Piece("train", text[:cut], True, source_bytes)
            yield Piece("val", text[cut:], True, 0, is_tail=True)
        elif text:
            yield Piece("val" if self.takes(len(text)) else "train", text, True, source_bytes)


def default_fraction(total: int) -> float:
    """A tenth, less of a large text."""
    return min(0.1, MAX_DEFAULT_VALIDATION / max(total, 1))


def cut_text(text: str, wish: int) -> int:
    """The end of the first paragraph after `wish`, else line, else word; near it in any case."""
    window = text[wish : wish + _window(len(text) - wish)]
    for pattern in _TEXT_BREAKS:
        match = re.search(pattern, window)
        if match and wish + match.end() < len(text):
            return wish + match.end()
    return wish


def _window(rest: int) -> int:
    """Returns the range in which to search for a good place to cut; the range leaves most of the rest."""
    return min(WINDOW, rest // 4)


def find_files(source: str | os.PathLike[str]) -> list[Path]:
    """A file, a folder (searched all through for .txt, .md and .jsonl) or a glob -> the files, in order, none empty."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(_walk(path))
        if not files:
            raise UserError(f"{source}: no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file in this folder")
    elif path.exists() or not glob.has_magic(str(source)):
        files = [path]
    else:
        files = sorted(found for name in glob.glob(str(path), recursive=True) if (found := Path(name)).is_file())
        if not files:
            raise UserError(f"{source}: no file matches this pattern (in {Path.cwd()})")
    for file in files:
        if file.suffix == ".bin":
            raise UserError(f"{file} is no text by its name: shards of tokens are trained on as they are, not prepared")
    full = [file for file in files if _size(file)]
    if not full:
        raise UserError(f"{source} is empty" if len(files) == 1 else f"{source}: all {len(files)} files are empty")
    return full


def _walk(folder: Path) -> Iterator[Path]:
    """Text files below `folder`, leaving out what is hidden."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))


def _size(path: Path) -> int:
    try:
        with open(path, "rb") as file:
            return file.seek(0, os.SEEK_END)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def fingerprint(files: list[Path]) -> str:
    """A hash of the contents in their order, and of what kind each is."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(f"{_is_jsonl(path)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def read_pieces(files: list[Path], field: str = "text", fraction: float | None = None) -> Iterator[Piece]:
    """The text of the files in pieces, each assigned to a split.

    `field` names the text in a line of JSON; `fraction` of the text is held out (None: a tenth, less of a large text).
    UserError, naming file and place, for what is not UTF-8 or not JSON.
    """
    total = sum(_size(path) for path in files)
    hold_out = HoldOut(default_fraction(total) if fraction is None else fraction, total)
    for path in files:
        yield from _jsonl_pieces(path, field, hold_out) if _is_jsonl(path) else _plain_pieces(path, hold_out)


def _is_jsonl(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def _jsonl_pieces(path: Path, field: str, hold_out: HoldOut) -> Iterator[Piece]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = parse_json_line(line, f"{path}, line {number}", field)
            yield from hold_out.pieces_of(text, len(line))


def parse_json_line(line: bytes, where: str, field: str) -> str:
    """The text in a line of JSON, "" for a blank line. `where` begins the message of a UserError."""
    try:
        line_text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 at byte {error.start + 1} of the line: convert the file to UTF-8"
        ) from error
    if not line_text.strip():
        return ""
    try:
        entry = json.loads(line_text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON ({error}): mend or remove the line") from error
    text = entry.get(field) if isinstance(entry, dict) else None
    if isinstance(text, str):
        if re.search("[\ud800-\udfff]", text):
            raise UserError(
                f"{where}: half a surrogate pair (\\ud800 to \\udfff), which is no character: mend the line"
            )
        return text
    if not isinstance(entry, dict):
        raise UserError(
            f"{where}: not a JSON object but {line_text.strip()[:30]!r}: each line must be {{{field!r}: ...}}"
        )
    fields = ", ".join(repr(key) for key, value in entry.items() if isinstance(value, str)) or "none"
    raise UserError(f"{where}: no text in field {field!r}; its fields with text: {fields}: choose one with --field")


def _plain_pieces(path: Path, hold_out: HoldOut) -> Iterator[Piece]:
    size = _size(path)
    whole = True
    if hold_out.gives_tail(size):
        cut, whole = _cut_file(path, size, round(size * (1 - hold_out.fraction)))
        ranges: list[tuple[Split, int, int]] = [("train", 0, cut), ("val", cut, size)]
    else:
        ranges = [("val" if hold_out.takes(size) else "train", 0, size)]
    for split, start, stop in ranges:
        starts, trim, is_tail = True, False, start > 0 and not whole
        for block in _blocks(path, start, stop):
            text = _decode(path, *block)
            segments = _SEPARATOR_LINE.split(text)
            for i, segment in enumerate(segments):
                # A separator takes the newlines around it; they would be read as blank lines of the documents.
                if trim and segment:
                    segment, trim = segment.removeprefix("\n"), False
                segment = segment.removesuffix("\n") if i + 1 < len(segments) else segment
                if segment:
                    share = len(block[1]) * len(segment) // len(text)
                    yield Piece(split, segment, starts, share, is_tail=is_tail)
                    starts = is_tail = False
                if i + 1 < len(segments):
                    starts, trim, is_tail = True, True, False


def _cut_file(path: Path, size: int, wish: int) -> tuple[int, bool]:
    """Cuts bytes like `cut_text`, if possible after a line `<|endoftext|>`; True means that no document is cut."""
    with open(path, "rb") as file:
        file.seek(wish)
        window = file.read(_window(size - wish))
    for pattern in _BREAKS:
        match = re.search(pattern, window)
        if match and wish + match.end() < size:
            return wish + match.end(), pattern is _BREAKS[0]
    return wish, False


def _blocks(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The bytes from `start` to `stop` with their offsets, in blocks cut where no token is cut."""
    with open(path, "rb") as file:
        file.seek(start)
        pending = b""
        while start + len(pending) < stop:
            searched = len(pending)
            pending += file.read(min(max(BLOCK, searched), stop - start - searched))
            if len(pending) == searched:  # the file has been cut short since we looked
                break
            cuts = [match.start() for match in _SAFE_CUT.finditer(pending, max(searched - 3, 0))]
            if cuts and cuts[-1] and start + len(pending) < stop:
                yield start, pending[: cuts[-1]]
                start, pending = start + cuts[-1], pending[cuts[-1] :]
        if pending:
            yield start, pending


def _decode(path: Path, offset: int, data: bytes) -> str:
    """UTF-8 -> text, with newlines as Python reads them and without a byte-order mark."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = "it looks like UTF-16" if offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff") else error.reason
        raise UserError(f"{path} is not UTF-8 at byte {offset + error.start} ({hint}): convert it to UTF-8") from error
    if offset == 0:
        text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
