"""llmpy convert for Llamas: llama2.c's files and Hugging Face's folders, there and back."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmpy.formats import llama2c
from llmpy.formats.huggingface import folder as huggingface
from llmpy.tokenization.base import Tokenizer
from tests.formats.test_meta_llama import write_checkpoint
from tests.model_files import LLAMA, llama_parameters


@pytest.fixture
def source(shared_data, tmp_path):
    """The smallest model of llama2.c, with its tokenizer beside it."""
    for name in ("stories260K.bin", "tok512.bin"):
        (tmp_path / name).write_bytes((shared_data / "llama2c" / name).read_bytes())
    return tmp_path / "stories260K.bin"


def test_from_llama2c_to_hugging_face_and_back(source, tmp_path, convert):
    status, said = convert(source, tmp_path / "hf")
    assert status == 0
    assert "Llama of llama2.c as Hugging Face folder" in said
    assert Tokenizer.load(tmp_path / "hf" / "tokenizer.json").tokens == Tokenizer.load(tmp_path / "tok512.bin").tokens
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, [1, 2])
    status, said = convert(tmp_path / "hf", tmp_path / "back.bin")
    assert status == 0
    assert "as Llama of llama2.c" in said
    numbers = 28 + 4 * 260_032
    back, original = (path.read_bytes() for path in (tmp_path / "back.bin", source))
    assert len(back) == len(original)
    assert back[:numbers] == original[:numbers]  # the rest is a table that no reader reads


def test_transformers_opens_the_folder_with_its_tokenizer(source, tmp_path, convert):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    assert convert(source, tmp_path / "hf")[0] == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = Tokenizer.load(tmp_path / "tok512.bin")
    text = "Once upon a time, there was a little girl named Lily."
    assert theirs(text)["input_ids"] == [1, *ours.encode(text).tolist()]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    prompt = torch.tensor([[1, *ours.encode("Once upon a time").tolist()]])
    ids = model.generate(prompt, max_new_tokens=60, do_sample=False, pad_token_id=0)[0].tolist()
    assert ours.decode(ids[1:]).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside"
    )


def test_8_bits(source, tmp_path, convert):
    assert convert(source, tmp_path / "q.bin", "--dtype", "q8_0")[0] == 0
    assert llama2c.read_header(tmp_path / "q.bin").version == 2
    assert (tmp_path / "q.bin").stat().st_size < 0.6 * source.stat().st_size
    assert convert(tmp_path / "q.bin", tmp_path / "hf", "--dtype", "bfloat16")[0] == 0
    assert huggingface.read_config(tmp_path / "hf").vocab_size == 512


def test_a_checkpoint_and_a_tokenizer(tmp_path, source, convert):
    write_checkpoint(tmp_path / "ckpt.pt", LLAMA, llama_parameters())
    assert convert(tmp_path / "ckpt.pt", tmp_path / "model.bin")[0] == 0
    np.testing.assert_array_equal(llama2c.read_model(tmp_path / "model.bin")[1].flat, llama_parameters().flat)
    assert convert(tmp_path / "tok512.bin", tmp_path / "a.model")[0] == 0
    assert convert(tmp_path / "a.model", tmp_path / "b.bin")[0] == 0
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "tok512.bin").read_bytes()


def test_over_a_folder_of_shards_none_of_them_is_left_in_use(source, tmp_path, convert):
    huggingface.write_model(tmp_path / "hf", LLAMA, llama_parameters(), shard_bytes=9000)
    assert convert(source, tmp_path / "hf", "--force")[0] == 0
    assert not (tmp_path / "hf" / "model.safetensors.index.json").exists()
    assert huggingface.read_model(tmp_path / "hf")[0].vocab_size == 512


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["stories260K.bin", "x.bin", "--to", "llmc"], "is a Llama, which GPT-2 model of llm.c cannot be: give --to"),
        (["stories260K.bin", "x.bin", "--dtype", "bfloat16"], "float32 or q8_0 for a Llama of llama2.c, not bfloat16"),
        (["stories260K.bin", "x", "--dtype", "q8_0"], "float32 or bfloat16 for a Hugging Face folder"),
        (["gpt2", "x.bin", "--to", "llama2c"], "is a GPT-2, which Llama of llama2.c cannot be"),
        (["qwen", "x.bin"], "llama2.c cannot run this model: its qkv_bias is True"),
    ],
)
def test_what_does_not_go_together_is_one_line(arguments, why, source, models, tmp_path, convert, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").symlink_to(models / "folder")
    qwen = replace(LLAMA, qkv_bias=True)
    huggingface.write_model(tmp_path / "qwen", qwen, llama_parameters(qwen))
    before = sorted(path.name for path in tmp_path.iterdir())
    status, said = convert(*arguments)
    assert status == 1
    assert why in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before
