"""The tokenizers inside GGUF files give the tokens of the files they were made from."""

import json

import numpy as np
import pytest

from llmpy.errors import UserError
from llmpy.formats.gguf.file import GGUFFile
from llmpy.formats.gguf.tokenizer import read_tokenizer
from llmpy.tokenization.base import Tokenizer
from tests.formats.damage import check_one_line

gguf = pytest.importorskip("gguf")

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "It's 12345 o'clock;  the cat\n\n   is naïve 日本語 🙂",
    "<|endoftext|> </s>",
    "I'LL\r\n x",
]


def write(path, model, metadata, **lists):
    writer = gguf.GGUFWriter(path, "llama")
    if model:
        writer.add_tokenizer_model(model)
    for name, value in metadata.items():
        add = {int: writer.add_uint32, str: writer.add_string, bool: writer.add_bool}[type(value)]
        add(f"tokenizer.ggml.{name}", value)
    for name, values in lists.items():
        writer.add_array(f"tokenizer.ggml.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GGUFFile(path)


def lists_of(tokenizer):
    pieces = tokenizer.pieces
    return {"tokens": pieces.texts, "scores": pieces.scores, "token_type": pieces.kinds}


@pytest.fixture
def llama2(shared_data):
    return Tokenizer.load(shared_data / "llama2c" / "tok512.bin")


def test_sentencepiece(llama2, tmp_path):
    found = read_tokenizer(
        write(tmp_path / "a.gguf", "llama", {"bos_token_id": 1, "eos_token_id": 2}, **lists_of(llama2))
    )
    assert found.pieces == llama2.pieces
    assert (found.bos, found.stop_ids) == (1, (1, 2))
    for text in TEXTS:
        assert found.encode(text).tolist() == llama2.encode(text).tolist()
    switches = {"add_space_prefix": False, "remove_extra_whitespaces": True, "eos_token_id": 5}
    found = read_tokenizer(write(tmp_path / "b.gguf", "llama", switches, **lists_of(llama2)))
    assert (found.pieces.add_dummy_prefix, found.pieces.remove_extra_whitespaces) == (False, True)
    assert found.stop_ids == (1, 5)


def byte_level(tokenizer, pre, **metadata):
    """The lists and entries that llama.cpp's converter makes of a tokenizer.json."""
    source = json.loads(tokenizer.to_json())
    vocabulary = source["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    added = {token["content"] for token in source["added_tokens"]}
    merges = [" ".join(merge) for merge in source["model"]["merges"]]
    lists = {"tokens": tokens, "merges": merges, "token_type": [3 if token in added else 1 for token in tokens]}
    return {"pre": pre, **metadata}, lists


@pytest.mark.parametrize("pre", ["gpt-2", "default", None])
def test_gpt2(pre, gpt2_cache, tmp_path):
    gpt2 = Tokenizer.from_spec("gpt2")
    entries, lists = byte_level(gpt2, pre, eos_token_id=50256)
    entries = {name: value for name, value in entries.items() if value is not None}
    found = read_tokenizer(write(tmp_path / "a.gguf", "gpt2", entries, **lists))
    assert found.tokens == gpt2.tokens
    assert (found.end_of_text, found.bos, found.stop_ids) == (50256, None, (50256,))
    for text in TEXTS:
        assert found.encode(text).tolist() == gpt2.encode(text).tolist()
        assert found.decode(found.encode(text)) == text


def llama3() -> Tokenizer:
    from llmpy.tokenization.base import train_bpe

    return train_bpe(["Hello, world! It's 12345 o'clock; the cat is naïve 123 456. " * 20], 400)


@pytest.mark.parametrize(
    ("pre", "cuts"),
    [
        ("llama-bpe", ["Hello", ",", " world", "!", " It", "'S", " ", "123", "45", ".\n\n", "  ", " x"]),
        ("qwen2", ["Hello", ",", " world", "!", " It", "'S", " ", "1", "2", "3", "4", "5", ".\n\n", "  ", " x"]),
        ("smollm", ["Hello", ",", " world", "!", " It", "'", "S", " ", "1", "2", "3", "4", "5", ".", "\n\n  ", " x"]),
    ],
)
def test_text_is_cut_as_each_family_cuts_it(pre, cuts, tmp_path):
    entries, lists = byte_level(llama3(), pre, bos_token_id=0, eos_token_id=5)
    found = read_tokenizer(write(tmp_path / "a.gguf", "gpt2", entries, **lists))
    text = "".join(cuts)
    pieces = found._tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[a:b] for _, (a, b) in pieces] == cuts
    assert found.decode(found.encode(text)) == text
    assert found.bos == (0 if pre == "llama-bpe" else None)


def test_a_composed_character_for_qwen(tmp_path):
    entries, lists = byte_level(llama3(), "qwen2", add_bos_token=True, bos_token_id=7)
    found = read_tokenizer(write(tmp_path / "a.gguf", "gpt2", entries, **lists))
    assert found.decode(found.encode("e\u0301")) == "é"
    assert found.bos == 7


@pytest.mark.parametrize(
    ("model", "change", "why"),
    [
        (None, {}, "holds no tokenizer"),
        ("t5", {}, "of kind 't5'"),
        ("llama", {"tokens": None}, "tokens is missing"),
        ("llama", {"scores": [0.0]}, "scores has not one number"),
        ("llama", {"bos_token_id": 3}, "begin with token 3"),
        ("llama", {"eos_token_id": 512}, "eos_token_id is no token"),
        ("llama", {"tokens": ["a"] * 512}, "stands twice"),
        ("gpt2", {"pre": "unheard-of"}, "pre is 'unheard-of'"),
        ("gpt2", {}, "merges is missing"),
        ("gpt2", {"merges": ["a b c d"]}, "damaged tokenizer"),
        ("gpt2", {"merges": [], "tokens": ["a"] * 512}, "a token stands twice"),
    ],
)
def test_what_is_missing_or_another_kind_is_one_line(model, change, why, llama2, tmp_path):
    lists = lists_of(llama2) | {name: value for name, value in change.items() if isinstance(value, list | None)}
    entries = {name: value for name, value in change.items() if isinstance(value, int | str)}
    lists = {name: value for name, value in lists.items() if value is not None}
    with pytest.raises(UserError, match=why) as caught:
        read_tokenizer(write(tmp_path / "a.gguf", model, entries, **lists))
    check_one_line(str(caught.value))


def test_scores_may_be_missing(llama2, tmp_path):
    lists = lists_of(llama2)
    del lists["scores"]
    assert isinstance(read_tokenizer(write(tmp_path / "a.gguf", "llama", {}, **lists)).encode("a"), np.ndarray)
