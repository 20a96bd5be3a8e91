"""llmpy convert: there and back gives the same bytes, and nothing is written over or by half."""

import numpy as np
import pytest

from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.llmc import model as llmc
from llmpy.formats.llmc.shards import open_shard, write_shard
from llmpy.tokenization.base import ByteTokenizer, Tokenizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_is_the_same_file(dtype, models, tmp_path, convert):
    for source, target in (("folder", "a.bin"), ("a.bin", "hf"), ("hf", "b.bin")):
        source = models / source if source == "folder" else tmp_path / source
        assert convert(source, tmp_path / target, "--dtype", dtype)[0] == 0
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert llmc.read_model_header(tmp_path / "a.bin").dtype == dtype
    if dtype == "float32":
        assert (tmp_path / "a.bin").read_bytes() == (models / "model.bin").read_bytes()


def test_the_tokenizer_goes_along_into_a_folder(models, tmp_path, convert):
    convert(models / "folder", tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (models / "folder" / name).read_bytes()


def test_a_tokenizer_there_and_back(models, tmp_path, convert):
    assert convert(models / "folder", tmp_path / "a.bin", "--to", "tokenizer")[0] == 0
    assert convert("bytes", tmp_path / "b.bin", "--to", "tokenizer")[0] == 0
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert convert(tmp_path / "a.bin", tmp_path / "tokenizer.json")[0] == 0
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint() == ByteTokenizer().fingerprint()


def test_gpt2s_tokenizer_is_llmcs_file(gpt2_cache, tmp_path, convert):
    assert convert("gpt2", tmp_path / "gpt2_tokenizer.bin", "--to", "tokenizer")[0] == 0
    data = (tmp_path / "gpt2_tokenizer.bin").read_bytes()
    assert np.frombuffer(data[:16], "<u4").tolist() == [20240328, 2, 50257, 50256]
    assert data[1024:1026] == b"\x01!"  # its first token
    assert data.endswith(b"\x0d<|endoftext|>")


def test_a_shard_there_and_back(tmp_path, convert):
    tokens = np.array([5, 50256, 0], np.uint16)
    write_shard(tmp_path / "a.bin", tokens, 50257)
    assert convert(tmp_path / "a.bin", tmp_path / "b.bin")[0] == 0
    assert open_shard(tmp_path / "b.bin").dtype == np.uint32
    assert convert(tmp_path / "b.bin", tmp_path / "c.bin")[0] == 0
    assert (tmp_path / "c.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    assert (
        "d.bin: shard of 3 tokens as uint16" in convert(tmp_path / "c.bin", tmp_path / "d.bin", "--dtype", "uint16")[1]
    )


def test_a_token_that_does_not_fit(tmp_path, convert):
    write_shard(tmp_path / "a.bin", np.array([70_000], np.uint32), 128_256)
    status, err = convert(tmp_path / "a.bin", tmp_path / "b.bin")
    assert status == 1
    assert "token 70000" in err
    assert not (tmp_path / "b.bin").exists()


@pytest.mark.parametrize("target", ["file.bin", "folder"])
def test_what_exists_is_kept_unless_forced(target, models, tmp_path, convert):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    (tmp_path / "file.bin").write_text("mine")
    status, err = convert(models / "model.bin", tmp_path / target)
    assert status == 1
    assert "--force" in err
    assert (tmp_path / "file.bin").read_text() == "mine"
    assert convert(models / "model.bin", tmp_path / target, "--force")[0] == 0
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    written = tmp_path / target
    config = huggingface.read_config(written) if target == "folder" else llmc.read_model_header(written).config
    assert config.vocab_size == 257
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file.bin"}


def test_an_empty_folder_is_filled(models, tmp_path, convert):
    (tmp_path / "new").mkdir()
    assert convert(models / "model.bin", tmp_path / "new")[0] == 0
    assert (tmp_path / "new" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["model.bin", "x.onnx"], "does not say what to write"),
        (["model.bin", "x.bin", "--dtype", "uint16"], "a model's --dtype is float32 or bfloat16"),
        (["model.bin", "x.bin", "--to", "shard"], "is no shard"),
        (["model.bin", "x.bin", "--to", "tokenizer"], "has no tokenizer"),
        (["shard.bin", "x.bin", "--dtype", "float32"], "a shard's --dtype is uint16 or uint32"),
        (["shard.bin", "x.bin", "--to", "llmc"], "no model to run"),
        (["missing.bin", "x.bin"], "there is no file"),
        (["model.bin", "folder", "--to", "llmc", "--force"], "is a folder"),
        (["folder", "shard.bin", "--to", "huggingface", "--force"], "is a file"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_nothing_is_written(
    arguments, why, models, tmp_path, convert, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "model.bin"):
        (tmp_path / name).symlink_to(models / name)
    write_shard("shard.bin", np.array([1, 2]), 50257)
    before = sorted(path.name for path in tmp_path.iterdir())
    status, err = convert(*arguments)
    assert status == 1
    assert why in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("target", ["x.bin", "folder"])
def test_a_full_disk_leaves_nothing(target, models, tmp_path, convert, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(llmc, "write_floats", full)
    monkeypatch.setattr(huggingface, "write", full)
    status, err = convert(models / "model.bin", tmp_path / target)
    assert status == 1
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []
