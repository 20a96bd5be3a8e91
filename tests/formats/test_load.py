"""What a file or folder is, and the model in it with its tokenizer."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmpy
from llmpy.errors import UserError
from llmpy.formats import detect, llama2c
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.llmc import model as llmc
from llmpy.formats.llmc.shards import write_shard
from llmpy.formats.load import find_tokenizer
from llmpy.formats.tensor_map import parts
from llmpy.models.gpt2 import GPT2Config
from llmpy.tokenization.base import ByteTokenizer, Tokenizer
from tests.formats.damage import read_or_refuse
from tests.formats.test_meta_llama import write_checkpoint, write_folder
from tests.model_files import BYTES, CONFIG, make_model


def test_a_run_opens_at_its_newest_complete_checkpoint(run_folder):
    model = llmpy.load(run_folder)
    assert model.config == BYTES
    assert model.parameters.lnfb[0] == 10
    assert model.tokenizer.name == "bytes"
    assert model.kind == "run folder, step_00000010"


def test_a_checkpoint_opens_by_itself_with_the_tokenizer_of_its_run(run_folder):
    model = llmpy.load(run_folder / "step_00000002")
    assert model.parameters.lnfb[0] == 2
    assert model.tokenizer.name == "bytes"


def test_a_checkpoint_that_is_not_complete_is_refused(run_folder):
    with pytest.raises(UserError, match="no DONE"):
        llmpy.load(run_folder / "step_00000300")


def test_a_run_without_a_checkpoint_says_so(run_folder):
    for done in run_folder.glob("step_*/DONE"):
        done.unlink()
    with pytest.raises(UserError, match="no complete checkpoint"):
        llmpy.load(run_folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "state.json"])
def test_a_byte_that_flipped_in_a_checkpoint_is_found(name, run_folder):
    path = run_folder / "step_00000010" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=name):
        llmpy.load(run_folder)


def test_every_form_of_a_model_gives_the_same_parameters(tmp_path, model):
    huggingface.write_model(tmp_path / "folder", CONFIG, model.parameters)
    llmc.write_model(tmp_path / "model.bin", CONFIG, model.parameters)
    for source in ("folder", "folder/model.safetensors", "model.bin"):
        loaded = llmpy.load(str(tmp_path / source))
        assert loaded.config == CONFIG
        np.testing.assert_array_equal(loaded.parameters.flat, model.parameters.flat)
        assert loaded.tokenizer is None


def test_the_tokenizer_of_a_bin_is_beside_it_if_it_has_its_size(tmp_path):
    path = tmp_path / "model.bin"
    ByteTokenizer().save(tmp_path / "gpt2_tokenizer.bin")
    assert find_tokenizer(path, BYTES) == tmp_path / "gpt2_tokenizer.bin"
    assert find_tokenizer(path, CONFIG) is None
    assert find_tokenizer(path, GPT2Config()) == "gpt2"
    assert find_tokenizer(path, GPT2Config(vocab_size=50304)) == "gpt2"


def test_gpt2s_tokenizer_is_fetched_only_when_it_is_asked_for(tmp_path, monkeypatch, gpt2_cache):
    config = GPT2Config(50257, 4, 1, 1, 1)
    llmc.write_model(tmp_path / "model.bin", config, make_model(config, 1).parameters)
    model = llmpy.load(tmp_path / "model.bin")
    assert model.tokenizer_source == "gpt2"
    assert model.tokenizer.encode("hello world").tolist() == [31373, 995]


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (b"PK\3\4rest", "a zip archive"),
        (b"\x80\x04\x95", "pickle"),
        ((20240803).to_bytes(4, "little"), "Llama 3"),
        ((20240527).to_bytes(4, "little"), "an optimizer state"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x01\x02\xff\xfe\0", "no kind .* 01 02 ff fe"),
        (b"", "is empty"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_first_bytes(first, what, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(first)
    with pytest.raises(UserError, match=what) as caught:
        llmpy.load(path)
    assert "\n" not in str(caught.value)
    assert first == b"" or "readable are" in str(caught.value)


def test_what_is_read_but_is_no_model(tmp_path):
    (tmp_path / "text").write_text("To be, or not to be\n")
    write_shard(tmp_path / "val.bin", np.arange(9), 50257)
    ByteTokenizer().save(tmp_path / "tok.bin")
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    names = {
        "text": "a text file",
        "val.bin": "a shard",
        "tok.bin": "a tokenizer of llm.c",
        "tokenizer.json": "tokenizer",
    }
    for name, kind in names.items():
        with pytest.raises(UserError, match=f"{kind}.*no model to run"):
            llmpy.load(tmp_path / name)


def test_a_folder_of_nothing_and_a_name_of_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        llmpy.load(tmp_path)
    for name in ("missing.bin", "a/b/c", "./gpt2"):
        with pytest.raises(UserError, match="there is no file or folder"):
            llmpy.load(name)


def test_text_is_told_where_a_character_is_cut(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a" + "é".encode() * 40_000)  # 65,536 bytes end in the middle of one
    assert detect.detect(path) == detect.TEXT


@given(data=st.binary(max_size=300))
def test_any_bytes_are_of_a_kind_or_refused(data, tmp_path):
    assert read_or_refuse(llmpy.load, tmp_path / "x", data) is None
    read_or_refuse(detect.detect, tmp_path / "x", data)


def test_steps_are_told_by_their_number_not_by_their_name(tmp_path):
    for name in ("step_00000009", "step_100000000", "step_last"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "DONE").touch()
    assert detect.newest_step(tmp_path) == tmp_path / "step_100000000"


# ---- Llamas --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stories(shared_data, tmp_path):
    """The smallest model of llama2.c in every form, each in a folder of its own with its tokenizer."""
    config, parameters = llama2c.read_model(shared_data / "llama2c" / "stories260K.bin")
    tokenizer = Tokenizer.load(shared_data / "llama2c" / "tok512.bin")
    for version in (0, 1, 2):
        llama2c.write_model(tmp_path / f"v{version}" / "m.bin", config, parameters, version)
        tokenizer.save(tmp_path / f"v{version}" / ["tokenizer.bin", "tok512.bin", "tokenizer.model"][version])
    huggingface.write_model(tmp_path / "folder", config, parameters)
    tokenizer.save(tmp_path / "folder" / "tokenizer.model")
    write_checkpoint(tmp_path / "training" / "ckpt.pt", config, parameters)
    tokenizer.save(tmp_path / "training" / "tokenizer.json")
    write_folder(
        tmp_path / "meta", config, parameters, 1, params={"dim": 64, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4}
    )
    tokenizer.save(tmp_path / "meta" / "tokenizer.model")
    return tmp_path, config, parameters, tokenizer


FORMS = {
    "v0/m.bin": "Llama of llama2.c",
    "v1/m.bin": "Llama of llama2.c",
    "v2/m.bin": "Llama of llama2.c",
    "folder": "Hugging Face folder",
    "training/ckpt.pt": "PyTorch checkpoint",
    "meta": "Llama of Meta",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_llama_is_the_same_model_with_its_tokenizer(form, stories):
    folder, config, parameters, tokenizer = stories
    model = llmpy.load(folder / form)
    assert model.kind == FORMS[form]
    in_memory = {"folder": False}.get(form, True)
    context = 2048 if form == "meta" else config.context
    assert model.config == replace(config, context=context, rope_interleaved=model.config.rope_interleaved)
    assert model.config.rope_interleaved or not in_memory
    assert model.tokenizer.encode("Once upon a time").tolist() == tokenizer.encode("Once upon a time").tolist()
    assert model.tokenizer.bos == 1
    for part in parts(config):
        expected = part.stored(parameters, config, interleaved=True)
        found = part.stored(model.parameters, model.config, interleaved=True)
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 if form.startswith("v2") else 0)


def test_a_gguf_holds_its_tokenizer(stories):
    pytest.importorskip("gguf")
    from tests.formats.gguf_files import write_llama

    folder, config, parameters, tokenizer = stories
    lists = {"tokens": tokenizer.pieces.texts, "scores": tokenizer.pieces.scores, "token_type": tokenizer.pieces.kinds}
    entries = {"tokenizer.ggml.model": "llama"} | {f"tokenizer.ggml.{name}": value for name, value in lists.items()}
    model = llmpy.load(write_llama(folder / "m.gguf", config, parameters, metadata=entries, layers=5))
    assert model.kind == "GGUF file"
    assert model.config == config
    np.testing.assert_array_equal(model.parameters.flat, parameters.flat)
    assert model.tokenizer.pieces == tokenizer.pieces
    assert llmpy.load(write_llama(folder / "n.gguf", config, parameters, layers=5)).tokenizer is None


def test_a_cut_llama_is_told_by_its_reader(stories):
    folder = stories[0]
    for form in ("v0/m.bin", "v1/m.bin", "v2/m.bin", "training/ckpt.pt"):
        path = folder / form
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match="cut off"):
            llmpy.load(path)


def test_tokenizers_of_llamas_are_no_models(shared_data):
    for name, kind in (("tok512.bin", "a tokenizer of llama2.c"), ("tokenizer.model", "a SentencePiece model")):
        with pytest.raises(UserError, match=f"is {kind}, which holds no model"):
            llmpy.load(shared_data / "llama2c" / name)
