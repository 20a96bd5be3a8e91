"""The named corpora, fetched from a server on the loopback address, and anybody's own text by its name."""

import hashlib
import io
import json
import random
import tarfile

import pytest

from llmpy.data import corpora
from llmpy.data.corpora import open_corpus
from llmpy.errors import UserError


def test_the_manual_needs_no_network():
    corpus = open_corpus("python-docs")
    pieces = list(corpus.pieces())
    assert pieces == list(corpus.pieces())
    assert sum(len(piece.text) for piece in pieces) == corpus.size
    assert sum(piece.source_bytes for piece in pieces) == corpus.size
    held_out = sum(len(piece.text) for piece in pieces if piece.split == "val")
    assert held_out == pytest.approx(corpus.size / 10, rel=0.3)
    assert open_corpus("python-docs", val_fraction=0.3).fingerprint != corpus.fingerprint


@pytest.fixture
def shakespeare(file_server, own_cache, monkeypatch):
    file_server.content = b"First:\nSpeak.\n\nSecond:\nNo.\n\n\nThird:\nYes.\n"
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", file_server.url)
    monkeypatch.setattr(corpora, "SHAKESPEARE_SIZE", len(file_server.content))
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", hashlib.sha256(file_server.content).hexdigest())
    return file_server


def test_shakespeare_is_fetched_once_and_cut_into_speeches(shakespeare, own_cache):
    for _ in range(2):
        corpus = open_corpus("shakespeare")
        pieces = list(corpus.pieces())
    assert [piece.text for piece in pieces] == ["First:\nSpeak.\n\n", "Second:\nNo.\n\n", "\nThird:\nYes.\n"]
    assert all(piece.starts_document for piece in pieces)
    assert (corpus.name, corpus.first_tokens_validate) == ("tiny_shakespeare", 32768)
    assert len(shakespeare.requests) == 1
    assert (own_cache / "tiny_shakespeare.txt").read_bytes() == shakespeare.content


def test_shakespeare_put_there_by_hand(own_cache, shared_data):
    path = own_cache / "tiny_shakespeare.txt"
    path.parent.mkdir()
    path.write_bytes((shared_data / "tinyshakespeare" / "input.txt").read_bytes())
    assert len(list(open_corpus("shakespeare").pieces())) == 7222


def test_tinystories_is_read_from_its_archive(file_server, own_cache, monkeypatch):
    stories = {number: [{"story": f" story {number}.{i}\n", "source": "x"} for i in range(4)] for number in (1, 0, 2)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in [("README", b"hello"), *[(f"./data{n:02}.json", s) for n, s in stories.items()]]:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    file_server.content = buffer.getvalue()
    monkeypatch.setattr(corpora, "TINYSTORIES_URL", file_server.url)
    monkeypatch.setattr(corpora, "TINYSTORIES_SIZE", len(file_server.content))
    monkeypatch.setattr(corpora, "TINYSTORIES_SHA256", hashlib.sha256(file_server.content).hexdigest())

    corpus = open_corpus("tinystories")
    assert file_server.requests == []  # only what is read is fetched
    pieces = list(corpus.pieces())
    assert pieces == list(corpus.pieces())
    assert len(file_server.requests) == 1
    expected = []
    for number, seed, split in ((1, 1337, "train"), (0, 1337, "val"), (2, 1338, "train")):
        order = [f"story {number}.{i}" for i in range(4)]
        random.Random(seed).shuffle(order)
        expected += [(split, text) for text in order]
    assert [(piece.split, piece.text) for piece in pieces] == expected
    assert sum(piece.source_bytes for piece in pieces) <= corpus.size or len(file_server.content) < 20_000


def test_the_splits_of_named_corpora_are_fixed(own_cache):
    for name in ("shakespeare", "tinystories"):
        with pytest.raises(UserError, match=f"{name} has a validation split of its own"):
            open_corpus(name, val_fraction=0.2)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_bad_fractions(fraction):
    with pytest.raises(UserError, match="is not between 0 and 1"):
        open_corpus("python-docs", val_fraction=fraction)


def test_what_is_neither_a_name_nor_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"no corpus and no file 'shakespear': name a file.*or python-docs, shakespeare"
    ):
        open_corpus("shakespear")
    with pytest.raises(UserError, match=r"cannot read my/book\.txt: No such file"):
        open_corpus("my/book.txt")


def test_names_of_shards_are_plain(tmp_path):
    for name, stem in (("My book (2nd ed.).txt", "My_book_2nd_ed"), ("日記.md", "日記"), ("....txt", "text")):
        (tmp_path / name).write_text("text")
        assert open_corpus(str(tmp_path / name)).name == stem
    assert open_corpus(str(tmp_path / "*")).name == "text"
    assert open_corpus(str(tmp_path)).name == tmp_path.name
    assert open_corpus(str(tmp_path)).title == f"{tmp_path} (2 files)"
