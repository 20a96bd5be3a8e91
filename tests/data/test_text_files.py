"""Text files: every piece of them read once, split the same way each time, and bad ones named with the place."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpy.data import text_files
from llmpy.data.text_files import HoldOut, cut_text, find_files, fingerprint, parse_json_line, read_pieces
from llmpy.errors import UserError
from llmpy.tokenization.base import train_bpe

PROSE = "".join(f"Line {i} of the text, with words.\n" + "\n" * (i % 5 == 4) for i in range(200))


def text_of(pieces, split=None) -> str:
    return "".join(piece.text for piece in pieces if split in (None, piece.split))


def read(path, **options) -> list[text_files.Piece]:
    return list(read_pieces(find_files(path), **options))


def test_a_file_is_one_document_whose_tail_validates(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(PROSE, encoding="utf-8")
    pieces = read(path)
    assert text_of(pieces) == PROSE
    train, val = text_of(pieces, "train"), text_of(pieces, "val")
    assert len(val) == pytest.approx(len(PROSE) / 10, rel=0.3)
    assert train.endswith("\n\n")
    assert [(piece.split, piece.starts_document, piece.is_tail) for piece in pieces] == [
        ("train", True, False),
        ("val", True, True),
    ]
    assert sum(piece.source_bytes for piece in pieces) == len(PROSE)
    assert len(text_of(read(path, fraction=0.5), "val")) == pytest.approx(len(PROSE) / 2, rel=0.1)


def test_byte_order_mark_and_foreign_newlines(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes("\ufeff".encode() + PROSE.replace("\n", "\r\n").encode() + b"old Mac\rline")
    assert text_of(read(path)) == PROSE + "old Mac\nline"


def test_lines_with_end_of_text_separate_documents(tmp_path):
    path = tmp_path / "stories.txt"
    stories = [f"Story {i} begins.\n\nAnd <|endoftext|> here ends story {i}." for i in range(200)]
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    pieces = read(path)
    assert [piece.text for piece in pieces] == stories
    assert all(piece.starts_document for piece in pieces)
    assert 15 <= sum(piece.split == "val" for piece in pieces) <= 20
    assert [piece.is_tail for piece in pieces].count(True) == 0


@pytest.mark.parametrize("block", [16, 50, 333, 1 << 20])
def test_documents_do_not_depend_on_the_blocks_they_are_read_in(tmp_path, monkeypatch, block):
    monkeypatch.setattr(text_files, "BLOCK", block)
    path = tmp_path / "stories.txt"
    path.write_text(
        "\nx\n<|endoftext|>\n\nOne\n<|endoftext|> \r\nTwo\nlines\n<|endoftext|>\n<|endoftext|>\n3" + "\nz" * 99
    )
    documents: list[str] = []
    for piece in read(path, fraction=1e-9):
        if piece.starts_document:
            documents.append("")
        documents[-1] += piece.text
    assert documents == ["\nx", "\nOne", "Two\nlines", "3" + "\nz" * 99]


@given(st.text(st.sampled_from("ab1 \n\n\t\r\u3000\u00a0日é'!🙂"), max_size=300))
def test_cutting_into_blocks_changes_no_token(bpe, tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    path.write_bytes(text.encode())
    block, text_files.BLOCK = text_files.BLOCK, 8
    try:
        blocks = [data for _, data in text_files._blocks(path, 0, len(text.encode()))]
    finally:
        text_files.BLOCK = block
    texts = [text_files._decode(path, 1, data) for data in blocks]
    whole = text_files._decode(path, 1, text.encode())
    assert "".join(texts) == whole
    pieces = [bpe.encode(part) for part in texts]
    np.testing.assert_array_equal(np.concatenate([np.array([], np.uint32), *pieces]), bpe.encode(whole))


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(["  ab ab\n\n\n ab 1 1\t\t 日日 \n \n"] * 9, 280)


def test_a_line_longer_than_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 100)
    path = tmp_path / "line.txt"
    path.write_text("word " * 5000)
    pieces = read(path, fraction=0.2)
    assert text_of(pieces) == "word " * 5000
    assert len(text_of(pieces, "val")) == pytest.approx(5000, abs=10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PROSE.encode() + b"caf\xe9 ", rf"bad.txt is not UTF-8 at byte {len(PROSE) + 3} \(.*\): convert it to UTF-8"),
        (PROSE.encode("utf-16"), r"bad.txt is not UTF-8 at byte 0 \(it looks like UTF-16\)"),
        (b"x" * 300 + "é".encode()[:1], r"not UTF-8 at byte 300 \(unexpected end of data\)"),
        (b"", "bad.txt is empty"),
    ],
)
def test_bad_plain_files(tmp_path, monkeypatch, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    monkeypatch.setattr(text_files, "BLOCK", 128)
    with pytest.raises(UserError, match=message):
        read(path)


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot read no.txt: No such file"):
        find_files("no.txt")
    with pytest.raises(UserError, match=r"\*.txt: no file matches"):
        find_files("*.txt")
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no .txt, .md or .jsonl file in this folder"):
        find_files(tmp_path)
    (tmp_path / "shard.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="shards of tokens are trained on as they are"):
        find_files("*.bin")
    for name in "ab":
        (tmp_path / f"{name}.txt").touch()
    with pytest.raises(UserError, match="all 2 files are empty"):
        find_files(tmp_path)


def test_folders_and_globs(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.TXT", "sub/d.jsonl", "sub/e.py", ".git/f.txt", ".g.txt", "empty.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if name == "empty.md" else "text")
    names = [str(path.relative_to(tmp_path)) for path in find_files(tmp_path)]
    assert names == ["a.md", "b.txt", "sub/c.TXT", "sub/d.jsonl"]
    names = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path / "**" / "*.[tT]*"))]
    assert names == ["b.txt", "sub/c.TXT"]
    (tmp_path / "odd[1].txt").write_text("text")
    assert find_files(tmp_path / "odd[1].txt") == [tmp_path / "odd[1].txt"]


def test_many_small_files_are_held_out_whole_and_evenly(tmp_path):
    for i in range(100):
        (tmp_path / f"{i:03}.txt").write_text(f"note {i:03}" * 5)
    pieces = read(tmp_path)
    held_out = [i for i, piece in enumerate(pieces) if piece.split == "val"]
    assert len(pieces) == 100
    assert held_out == list(range(9, 100, 10))


def test_a_large_file_among_small_ones_gives_its_tail(tmp_path):
    (tmp_path / "large.txt").write_text(PROSE * 5)
    for i in range(30):
        (tmp_path / f"small{i}.txt").write_text("small " * 20)
    tails = [piece for piece in read(tmp_path) if piece.is_tail]
    assert len(tails) == 1
    assert tails[0].text.startswith("Line")


def test_a_large_text_holds_out_less_than_a_tenth():
    assert text_files.default_fraction(1000) == 0.1
    assert text_files.default_fraction(5_000_000_000) == 0.001


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=100), st.floats(0.01, 0.5))
def test_something_is_held_out_and_not_too_much(sizes, fraction):
    hold_out = HoldOut(fraction, sum(sizes))
    pieces = [piece for size in sizes for piece in hold_out.pieces_of("x" * size, size)]
    held_out = len(text_of(pieces, "val"))
    assert len(text_of(pieces)) == sum(sizes)
    assert held_out <= fraction * sum(sizes) + len(sizes)
    assert held_out > 0 or sum(sizes) * fraction < 2


def test_a_text_is_cut_after_a_paragraph_or_line_or_word():
    rest = "x" * 100
    assert cut_text("aa bb\ncc\n\ndd ee" + rest, 1) == 10
    assert cut_text("aa bb\ncc dd" + rest, 1) == 6
    assert cut_text("aa bb cc" + rest, 1) == 3
    assert cut_text("aabbcc" + rest, 1) == 1
    assert cut_text(rest + "\n\n", 50) == 50
    assert cut_text("", 0) == 0


def test_json_lines(tmp_path):
    path = tmp_path / "chat.jsonl"
    texts = [f"document {i}\n<|endoftext|>\nis one" for i in range(50)]
    lines = [json.dumps({"text": text, "content": text.upper(), "n": 1}) for text in texts]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    pieces = read(path)
    assert [piece.text for piece in pieces] == texts
    assert all(piece.starts_document for piece in pieces)
    assert 3 <= sum(piece.split == "val" for piece in pieces) <= 5
    assert [piece.text for piece in read(path, field="content")] == [text.upper() for text in texts]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"bad.jsonl, line 3: not a line of JSON"),
        (b'{"text": "caf\xe9"}', r"bad.jsonl, line 3: not UTF-8 at byte 14 of the line"),
        (b"[1]", r"line 3: not a JSON object but '\[1\]'"),
        (b'{"content": "a", "n": 1}', r"line 3: no text in field 'text'; its fields with text: 'content': choose"),
        (b'{"text": 5}', r"line 3: no text in field 'text'; its fields with text: none"),
        (b'{"text": "\\ud800"}', r"line 3: half a surrogate pair"),
        (b"[" * 100_000, r"line 3: not a line of JSON"),
    ],
)
def test_bad_json_lines(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        read(path)


@given(st.binary(max_size=100) | st.builds(lambda x: json.dumps(x).encode(), st.dictionaries(st.text(), st.text())))
def test_any_line_is_text_or_refused_in_one_line(line):
    message = ""
    try:
        parse_json_line(line, "file, line 1", "text").encode()
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_the_fingerprint_is_of_the_contents(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "c.jsonl").write_text("one")
    a, b, c = ([tmp_path / name] for name in ("a.txt", "b.txt", "c.jsonl"))
    assert fingerprint(a) == fingerprint(b) != fingerprint(c)
    assert fingerprint(a + b) != fingerprint(a)
