"""What is said of a file: its sizes, and whether it is sound."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmpy.data.prepare import prepare
from llmpy.errors import UserError
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface.safetensors import TensorToWrite, write
from llmpy.formats.llmc import debug_state
from llmpy.formats.llmc import model as llmc
from llmpy.formats.llmc.shards import write_shard
from llmpy.tokenization.base import ByteTokenizer
from llmpy.tools.describe import describe, to_json
from tests.model_files import BYTES, CONFIG, make_model

SIZES = {"layers": 2, "heads": 3, "channels": 12, "context": 9, "vocab_size": 61}


def assert_has(facts, **expected):
    assert {name: facts.get(name) for name in expected} == expected


@pytest.mark.parametrize("form", ["folder", "model.bin"])
def test_a_model(form, tmp_path, model):
    huggingface.write_model(tmp_path / "folder", CONFIG, model.parameters)
    llmc.write_model(tmp_path / "model.bin", CONFIG, model.parameters)
    found = describe(tmp_path / form)
    transposed = form == "folder"
    assert found.problems == []
    parameters = model.parameters.flat.size - (128 - 61) * 12
    assert_has(found.facts, parameters=parameters, **SIZES)
    assert len(found.tensors) == (2 + 12 * 2 + 2 if transposed else 16)
    wpe = next(tensor for tensor in found.tensors if "wpe" in tensor["name"])
    assert wpe["shape"] == [9, 12]
    assert wpe["mean"] == pytest.approx(model.parameters.wpe.mean(), rel=1e-4)
    assert wpe["std"] == pytest.approx(model.parameters.wpe.std(), rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_no_numbers_are_counted(dtype, tmp_path):
    model = make_model()
    model.parameters.fcw[1, 2, :2] = np.nan, np.inf
    llmc.write_model(tmp_path / "model.bin", CONFIG, model.parameters, dtype)
    [problem] = describe(tmp_path / "model.bin").problems
    assert "2 of the" in problem
    assert "fcw" in problem


def test_a_run(run_folder):
    (run_folder / "main.log").write_text(
        "s:0 tel:5.5000\ns:0 trl:5.4 lr:0.0 norm:1.0\ns:9 trl:3.25 lr:0.0 norm:1.0\nrubbish\n"
    )
    found = describe(run_folder)
    assert found.problems == []
    assert_has(found.facts, checkpoints=["step_00000002", "step_00000010"], incomplete=["step_00000300"])
    assert_has(found.facts, last_step=9, train_loss=3.25, val_loss=5.5, channels=BYTES.channels)
    assert found.facts["tokenizer"] == str(run_folder / "tokenizer.json")


def test_a_run_that_is_damaged(run_folder):
    (run_folder / "config.toml").write_text("# llmpy train\n[model\n")
    weights = run_folder / "step_00000010" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    problems = "; ".join(describe(run_folder).problems)
    assert "model.safetensors is damaged" in problems
    assert "config.toml is damaged" in problems


def test_a_checkpoint_that_is_not_complete(run_folder):
    assert describe(run_folder / "step_00000300").problems == ["not complete: there is no DONE in it"]


def test_tensors_of_any_kind(tmp_path):
    with open(tmp_path / "optimizer.safetensors", "wb") as file:
        write(file, [TensorToWrite.of("m", np.arange(5, dtype=np.float32))], {"step": "3"})
    found = describe(tmp_path / "optimizer.safetensors")
    assert_has(found.facts, numbers=5, step="3")
    assert found.tensors[0]["mean"] == 2


def test_prepared_data_and_its_shards(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All the world's a stage.\n" * 100)
    data = prepare(str(text), "bytes", tmp_path / "data")
    found = describe(data.folder)
    assert found.problems == []
    assert_has(found.facts, train_tokens=data.train_tokens, val_tokens=data.val_tokens, train_shards=1, val_shards=1)
    assert_has(found.facts, vocab_size=257, first_text="<|endoftext|>All the world's a stage")
    shard = data.folder / data.val_files[0]
    found = describe(shard)
    assert_has(found.facts, tokens=data.val_tokens, dtype="uint16", bytes=1024 + 2 * data.val_tokens)
    shard.write_bytes(shard.read_bytes()[:-2] + b"\0\1")
    assert any(shard.name in problem for problem in describe(data.folder).problems)


def test_a_shard_beside_another_tokenizer(tmp_path):
    write_shard(tmp_path / "val.bin", np.array([1, 2, 400]), 50257)
    assert describe(tmp_path / "val.bin").problems == []
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    found = describe(tmp_path / "val.bin")
    assert "token 400" in found.problems[0]


def test_a_debug_state(tmp_path, model):
    x = np.full((2, CONFIG.context), 33, np.int32)
    debug_state.write_debug_state(tmp_path / "state.bin", debug_state.make_debug_state(model, x, x))
    found = describe(tmp_path / "state.bin", ByteTokenizer())
    assert_has(found.facts, batch_size=2, sequence_length=9, first_text="!" * 9)


@pytest.mark.parametrize("name", ["tokenizer.json", "tok.bin"])
def test_a_tokenizer(name, tmp_path):
    ByteTokenizer().save(tmp_path / name)
    assert_has(describe(tmp_path / name).facts, name="bytes", vocab_size=257, end_of_text=256, longest_token=13)


def test_text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\n  Grüße\nzwei\n".encode())
    assert_has(describe(path).facts, bytes=16, characters=14, lines=3, first_line="Grüße")
    path.write_bytes(b"a" * 70_000 + b"\xff")
    assert "not UTF-8" in describe(path).problems[0]


def test_a_cut_file_is_refused_in_the_words_of_its_reader(tmp_path, model):
    llmc.write_model(tmp_path / "model.bin", CONFIG, model.parameters)
    data = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(data[:-1])
    with pytest.raises(UserError, match="cut off"):
        describe(tmp_path / "model.bin")
    with pytest.raises(UserError, match="there is no file"):
        describe(tmp_path / "missing")


def test_as_json(tmp_path, model):
    llmc.write_model(tmp_path / "model.bin", CONFIG, model.parameters)
    found = json.loads(to_json(describe(tmp_path / "model.bin")))
    assert_has(found, kind="GPT-2 model of llm.c", sound=True, problems=[], dtype="float32", **SIZES)
    assert len(found["tensors"]) == 16


def test_the_real_files_of_others(shared_data: Path):
    found = describe(shared_data / "tinyshakespeare" / "input.txt")
    assert_has(found.facts, characters=1_115_394, lines=40_000, first_line="First Citizen:")
    sizes = {"layers": 5, "heads": 8, "kv_heads": 4, "channels": 64, "hidden": 172, "vocab_size": 512}
    for version, name in enumerate(("stories260K.bin", "stories260K_v1.bin")):
        found = describe(shared_data / "llama2c" / name)
        assert (found.kind, found.problems, len(found.tensors)) == ("Llama of llama2.c", [], 2 + 9 * 5)
        assert_has(found.facts, version=version, dtype="float32", parameters=260_032, **sizes)
        assert found.facts["tokenizer"] == str(shared_data / "llama2c" / "tok512.bin")
    for name, kind in (("tokenizer.bin", "tokenizer of llama2.c"), ("tokenizer.model", "SentencePiece model")):
        found = describe(shared_data / "llama2c" / name)
        assert found.kind == kind
        assert_has(found.facts, name="sentencepiece:32000", vocab_size=32000, end_of_text=1, longest_token=27)
