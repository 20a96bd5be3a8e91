"""Where --tokenizer finds one: a name, a file, a folder, a GGUF, the hub."""

import shutil

import numpy as np
import pytest

from llmpy import Tokenizer, UserError
from llmpy.cli import main
from llmpy.formats.huggingface import hub
from llmpy.formats.open_tokenizer import open_tokenizer
from llmpy.tokenization import sentencepiece_files
from llmpy.tokenization.base import ByteTokenizer


def test_a_folder_has_it_as_json_or_as_a_model(tmp_path):
    with pytest.raises(UserError, match=r"holds no tokenizer.json or tokenizer.model"):
        open_tokenizer(str(tmp_path))
    trained = Tokenizer.from_spec("sentencepiece:290", ["The quick brown fox. " * 40])
    trained.save(tmp_path / "tokenizer.model")
    assert open_tokenizer(str(tmp_path)).pieces == trained.pieces
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    assert open_tokenizer(str(tmp_path)).name == "bytes"


def test_names_and_files_are_as_ever(tmp_path):
    assert open_tokenizer("bytes").name == "bytes"
    assert open_tokenizer("bpe:260", ["some text"]).vocab_size <= 260
    with pytest.raises(UserError, match="no tokenizer 'byts'"):
        open_tokenizer("byts")


def test_a_name_on_the_hub(tmp_path, monkeypatch):
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    asked = []

    def get(name, file, revision=None):
        asked.append((name, file))
        return tmp_path / file if (tmp_path / file).exists() else None

    monkeypatch.setattr(hub, "_get", get)
    assert open_tokenizer("somebody/llama").name == "bytes"
    assert asked == [("somebody/llama", "tokenizer.json")]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"somebody/llama on the hub has neither tokenizer.json nor tokenizer.model"):
        open_tokenizer("somebody/llama")


def test_without_a_network_llama2_says_where_it_is_looked_for(own_cache, monkeypatch):
    monkeypatch.setattr(sentencepiece_files, "LLAMA2_URL", "http://127.0.0.1:9/tokenizer.model")
    with pytest.raises(UserError, match=r"cannot download Llama 2's tokenizer .* or put the file at .*tokenizer.model"):
        open_tokenizer("llama2")
    own_cache.mkdir(exist_ok=True)
    (own_cache / "llama2_tokenizer.model").write_bytes(b"another file")
    with pytest.raises(UserError, match=r"is not Llama 2's tokenizer from .*delete it"):
        open_tokenizer("llama2")


def test_llama2_by_its_name(shared_data, own_cache, tmp_path, capsys):
    own_cache.mkdir()
    shutil.copy(shared_data / "llama2c" / "tokenizer.model", own_cache / "llama2_tokenizer.model")
    (tmp_path / "stories.txt").write_text("Once upon a time.\n<|endoftext|>\n" * 40)
    assert (
        main(["prepare", str(tmp_path / "stories.txt"), "--tokenizer", "llama2", "--out", str(tmp_path / "out")]) == 0
    )
    assert "32,000 tokens" in capsys.readouterr().out
    tokenizer = open_tokenizer(str(tmp_path / "out"))
    theirs = Tokenizer.load(shared_data / "llama2c" / "tokenizer.bin")
    np.testing.assert_array_equal(tokenizer.encode("Once upon a time"), theirs.encode("Once upon a time"))
    assert (tokenizer.vocab_size, open_tokenizer("llama2").name) == (32000, "llama2")
    tokens = np.fromfile(next((tmp_path / "out").glob("*_train.bin")), np.uint16)[512:]
    story = [1, *theirs.encode("Once upon a time.").tolist()]  # BOS and the story, as llama2.c has it
    assert tokens[: 2 * len(story)].tolist() == 2 * story
