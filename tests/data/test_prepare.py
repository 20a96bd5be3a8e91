"""Prepared data: what llm.c would make of it, made once, whole or not at all."""

import importlib
import json
import shutil

import numpy as np
import pytest

from llmpy.data.dataloader import DataLoader
from llmpy.data.prepare import check_seals, prepare
from llmpy.errors import UserError
from llmpy.formats.llmc.shards import open_shard, shard_files
from llmpy.tokenization.base import END_OF_TEXT, Tokenizer
from llmpy.utils.atomic_files import sha256_of

PROSE = "".join(f"Line {i} of the text, with words.\n" + "\n" * (i % 5 == 4) for i in range(200))


@pytest.fixture(autouse=True)
def _in_a_cache_of_its_own(own_cache): ...


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "my book.txt"
    path.write_text(PROSE, encoding="utf-8")
    return str(path)


def tokens_of(pattern) -> np.ndarray:
    return np.concatenate([open_shard(path) for path in shard_files(pattern)])


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tiny_shakespeare_is_llmcs(shared_data, gpt2_cache, own_cache):
    own_cache.mkdir()
    shutil.copy(shared_data / "tinyshakespeare" / "input.txt", own_cache / "tiny_shakespeare.txt")
    data = prepare("shakespeare", "gpt2")
    assert (data.val_tokens, data.train_tokens, data.documents) == (32_768, 305_260, 7222)
    assert (data.folder / "tiny_shakespeare_val.bin").stat().st_size == 66_560
    assert (data.folder / "tiny_shakespeare_train.bin").stat().st_size == 611_544
    # llm.c puts end-of-text before each section and encodes all of it in one go
    import tiktoken

    text = (shared_data / "tinyshakespeare" / "input.txt").read_text()
    text = END_OF_TEXT + text.replace("\n\n", "\n\n" + END_OF_TEXT)
    expected = tiktoken.get_encoding("gpt2").encode(text, allowed_special={END_OF_TEXT})
    assert np.concatenate([tokens_of(data.val), tokens_of(data.train)]).tolist() == expected


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300", "sentencepiece:290"])
def test_one_file(book, tokenizer):
    data = prepare(book, tokenizer)
    assert data.name == "my_book"
    assert data.title == book
    assert (data.documents, data.characters) == (1, len(PROSE))
    loaded = Tokenizer.load(data.tokenizer)
    assert (loaded.name, loaded.vocab_size) == (data.tokenizer_name, data.vocab_size)
    train, val = tokens_of(data.train), tokens_of(data.val)
    assert (len(train), len(val)) == (data.train_tokens, data.val_tokens)
    assert train[0] == val[0] == loaded.end_of_text
    assert loaded.decode(train[1:]) + loaded.decode(val[1:]) == PROSE
    loader = DataLoader(data.train, 2, 16, vocab_size=data.vocab_size)
    assert loader.next_batch()[0].shape == (2, 16)


def test_end_of_text_stands_before_each_document_and_nowhere_else(tmp_path):
    path = tmp_path / "stories.jsonl"
    texts = [f"Story {i} says {END_OF_TEXT} and ends." for i in range(100)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = prepare(str(path), "bpe:300")
    tokenizer = Tokenizer.load(data.tokenizer)
    tokens = np.concatenate([tokens_of(data.train), tokens_of(data.val)])
    starts = np.flatnonzero(tokens == tokenizer.end_of_text)
    found = [tokenizer.decode(part[1:]) for part in np.split(tokens, starts)[1:]]
    assert sorted(found) == sorted(texts)
    assert data.documents == 100


def test_the_tokenizer_never_sees_what_validates(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(PROSE + "zebra " * 120)
    tokenizer = Tokenizer.load(prepare(str(path), "bpe:400").tokenizer)
    assert not any(b"zebra" in token for token in tokenizer.tokens)


def test_a_second_time_nothing_is_done(book, tmp_path, monkeypatch):
    first = prepare(book, "bpe:300")
    before = contents(first.folder)
    monkeypatch.setattr("llmpy.data.prepare._make", None)  # would fail if called
    monkeypatch.setattr("llmpy.data.prepare._trained", None)
    assert prepare(book, "bpe:300") == first
    shutil.copy(book, tmp_path / "copy.txt")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(book, tmp_path / "elsewhere")
    assert prepare(str(tmp_path / "elsewhere" / "my book.txt"), "bpe:300") == first
    assert contents(first.folder) == before


def test_other_text_tokenizer_or_split_is_another_set(book, tmp_path):
    sets = {prepare(book, "bytes").folder, prepare(book, "bpe:300").folder, prepare(book, "bpe:301").folder}
    sets |= {prepare(book, "bytes", val_fraction=0.3).folder, prepare(book, "bytes", shard_tokens=1000).folder}
    (tmp_path / "my book.txt").write_text(PROSE + "more")
    sets.add(prepare(book, "bytes").folder)
    assert len(sets) == 6


def test_a_tokenizer_from_a_file(book):
    trained = prepare(book, "bpe:300")
    again = prepare(book, str(trained.tokenizer))
    assert again.folder != trained.folder
    for name in (*trained.train_files, *trained.val_files, "tokenizer.json"):
        assert sha256_of(again.folder / name) == sha256_of(trained.folder / name)


def test_what_is_damaged_in_the_cache_is_made_again(book):
    data = prepare(book, "bytes")
    whole = contents(data.folder)
    shard = data.folder / data.train_files[0]
    damages = (
        lambda: shard.write_bytes(shard.read_bytes()[:-1]),
        lambda: shard.write_bytes(shard.read_bytes()[:-1] + b"x"),
        lambda: shard.unlink(),
        lambda: (data.folder / "manifest.json").unlink(),
        lambda: (data.folder / "manifest.json").write_text("{"),
        lambda: (data.folder / "manifest.json").write_text("[]"),
        lambda: (data.folder / "tokenizer.json").write_text("{}"),
    )
    for damage in damages:
        damage()
        assert prepare(book, "bytes") == data
        assert contents(data.folder) == whole


def test_shards_are_checked_against_the_manifest_beside_them(book, tmp_path):
    data = prepare(book, "bytes")
    shard = data.folder / data.train_files[0]
    alone = tmp_path / "alone.bin"
    shutil.copy(shard, alone)
    assert check_seals([shard, alone]) == [sha256_of(shard), ""]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"my_book_train.bin is damaged: it is not as manifest.json says"):
        check_seals([shard])
    (data.folder / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest.json is damaged: prepare the data again"):
        check_seals([shard])


def test_many_shards(book):
    data = prepare(book, "bytes", shard_tokens=1000)
    assert data.train_files == tuple(f"my_book_train_{i:06d}.bin" for i in range(-(-data.train_tokens // 1000)))
    one = prepare(book, "bytes")
    assert tokens_of(data.train).tolist() == tokens_of(one.train).tolist()


def test_an_output_folder(book, tmp_path):
    out = tmp_path / "a" / "b [1]"
    data = prepare(book, "bytes", out)
    assert data.folder == out
    assert tokens_of(data.train).size == data.train_tokens
    assert prepare(book, "bytes", out) == data
    before = contents(out)
    with pytest.raises(UserError, match=r"holds other prepared data already \(.*my book.txt in bytes tokens\)"):
        prepare(book, "bpe:300", out)
    assert contents(out) == before
    (out / data.val_files[0]).write_bytes(b"x")
    with pytest.raises(UserError, match=r"my_book_val.bin is missing or damaged: delete"):
        prepare(book, "bytes", out)


def test_a_folder_of_somebody_elses_is_left_alone(book, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis").write_text("precious")
    with pytest.raises(UserError, match="own holds something else already: choose another folder with --out"):
        prepare(book, "bytes", tmp_path / "own")
    assert contents(tmp_path / "own") == {"thesis": b"precious"}
    (tmp_path / "empty").mkdir()
    assert prepare(book, "bytes", tmp_path / "empty").folder == tmp_path / "empty"
    with pytest.raises(UserError, match="holds something else"):
        prepare(book, "bytes", book)
    with pytest.raises(UserError, match="cannot write"):
        prepare(book, "bytes", f"{book}/sub")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "too short: 5 characters of text, at least 256"),
        (b"\n" * 3, "too short: 3 characters"),
        (b"caf\xe9 " * 100, "not UTF-8 at byte 3"),
    ],
)
def test_a_bad_text_leaves_nothing_behind(tmp_path, own_cache, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(str(path), "bpe:300")
    assert not own_cache.exists() or not list((own_cache / "prepared").iterdir())


def test_too_little_to_hold_out(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": "a" * 300, "rest": "b" * 100_000}))
    with pytest.raises(UserError, match="0 tokens for the split 'val'"):
        prepare(str(path), "bytes")


def test_a_process_that_was_faster_wins(book, monkeypatch):
    make = importlib.import_module(prepare.__module__)._make
    other = prepare(book, "bytes")
    kept = contents(other.folder)
    shutil.rmtree(other.folder)

    def slow(*args):
        made = make(*args)
        if not other.folder.exists():
            other.folder.mkdir()
            for name, data in kept.items():
                (other.folder / name).write_bytes(data)
        return made

    monkeypatch.setattr("llmpy.data.prepare._make", slow)
    assert prepare(book, "bytes") == other
    assert [path.name for path in other.folder.parent.iterdir()] == [other.folder.name]


def test_what_a_killed_process_left_is_cleared_away_a_day_later(book, monkeypatch):
    data = prepare(book, "bytes")
    leftover = data.folder.with_name(f".{data.folder.name}.123.abc.partial")
    leftover.mkdir()
    shutil.rmtree(data.folder)
    prepare(book, "bytes")
    assert leftover.exists()
    shutil.rmtree(data.folder)
    monkeypatch.setattr("llmpy.data.prepare._ABANDONED", -1)
    prepare(book, "bytes")
    assert not leftover.exists()
