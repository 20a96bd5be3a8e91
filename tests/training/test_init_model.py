"""Training that starts from a model: any file that can be run, its tokenizer, its chat template."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmpy import Tokenizer, Trainer, UserError
from llmpy.data.prepare import prepare
from llmpy.formats import llama2c
from llmpy.formats.load import load_model
from llmpy.inference.chat_template import find_template
from llmpy.models.llama import Llama, LlamaConfig
from llmpy.tools.convert import convert
from tests.chat_models import TEMPLATE, write_chat_model
from tests.tiny_runs import TEXT, files_of, losses, tiny

NO_SHAPE = {"layers": None, "heads": None, "channels": None, "tokenizer": None}


@pytest.fixture
def text(tmp_path, own_cache):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)
    return path


def small_llama(V):
    config = LlamaConfig(V, 24, layers=2, heads=4, kv_heads=2, channels=32)
    return Llama(config, "reference", 2, 12).initialize()


@pytest.fixture
def sentencepiece():
    return Tokenizer.from_spec("sentencepiece:300", [TEXT.decode()])


def from_llama2c(folder, tokenizer):
    model = small_llama(tokenizer.vocab_size)
    llama2c.write_model(folder / "model.bin", model.config, model.parameters)
    tokenizer.save(folder / "tokenizer.bin")
    return folder / "model.bin", model


def from_gguf(folder, tokenizer):
    pytest.importorskip("gguf")
    from tests.formats.gguf_files import write_llama

    model = small_llama(tokenizer.vocab_size)
    pieces = tokenizer.pieces
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces.texts,
        "tokenizer.ggml.scores": pieces.scores,
        "tokenizer.ggml.token_type": pieces.kinds,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
    }
    return write_llama(folder / "model.gguf", model.config, model.parameters, metadata=metadata), model


@pytest.mark.parametrize("write", [from_llama2c, from_gguf])
def test_a_file_brings_its_tokenizer_and_the_run_goes_on_without_it(text, tmp_path, sentencepiece, write):
    path, model = write(tmp_path, sentencepiece)
    config = tiny(text, init=str(path), lr=3e-3, **NO_SHAPE)
    trainer = Trainer(config, tmp_path / "run", quiet=True, stop_after=5)
    assert trainer.config.batches == "windows"
    assert trainer.model.config == replace(model.config, rope_interleaved=False)
    assert trainer.tokenizer.vocab_size == sentencepiece.vocab_size
    x, y = trainer.train_data.next_batch()
    assert trainer.model.loss(x, y) == pytest.approx(model.loss(x, y), rel=1e-6)
    np.testing.assert_array_equal(trainer.tokenizer.encode("The quick fox"), sentencepiece.encode("The quick fox"))
    Trainer(config, tmp_path / "whole", quiet=True).train()
    trainer = Trainer(config, tmp_path / "parts", quiet=True, stop_after=5)
    trainer.train()
    path.unlink()
    Trainer.resume(tmp_path / "parts", quiet=True).train()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    loaded = load_model(tmp_path / "parts")
    np.testing.assert_array_equal(loaded.tokenizer.encode("The quick fox"), sentencepiece.encode("The quick fox"))
    with pytest.raises(UserError, match=r"was started with --init .*, and --init .*other\.bin would make it another"):
        Trainer.resume(tmp_path / "parts", {"model": str(tmp_path / "other.bin")}, quiet=True)


@pytest.mark.parametrize("name", ["model.bin", "model.gguf"])
def test_what_came_out_of_a_run_converts_for_llama2c(text, tmp_path, sentencepiece, name):
    path, model = (from_llama2c if name.endswith(".bin") else from_gguf)(tmp_path, sentencepiece)
    Trainer(tiny(text, init=str(path), **NO_SHAPE), tmp_path / "run", quiet=True, stop_after=1).train()
    convert(str(tmp_path / "run"), tmp_path / "out" / "stories.bin")
    assert "in llama2.c's form" in convert(str(tmp_path / "run"), tmp_path / "out" / "tokenizer.bin", "tokenizer")
    convert(str(tmp_path / "run"), tmp_path / "out" / "tokenizer.model")
    assert load_model(tmp_path / "out" / "stories.bin").config == model.config
    for file in ("tokenizer.bin", "tokenizer.model"):
        theirs = Tokenizer.load(tmp_path / "out" / file)
        np.testing.assert_array_equal(theirs.encode("The quick fox"), sentencepiece.encode("The quick fox"))


def test_a_chat_template_travels_into_the_run_and_out_of_it(text, tmp_path):
    folder = write_chat_model(tmp_path / "model", 32)
    Trainer(tiny(text, init=str(folder), **NO_SHAPE), tmp_path / "run", quiet=True, stop_after=1).train()
    convert(str(tmp_path / "run"), tmp_path / "again")
    expected = find_template(load_model(folder), Tokenizer.load(folder / "tokenizer.json"))
    messages = [{"role": "user", "content": "Hello"}]
    for place in (tmp_path / "run", tmp_path / "run" / "step_00000001", tmp_path / "again"):
        model = load_model(place)
        template = find_template(model, model.tokenizer)
        assert (template.source, template.stop_ids) == (TEMPLATE, expected.stop_ids)
        np.testing.assert_array_equal(template.encode(messages), expected.encode(messages))
    assert json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    Trainer(tiny(text, **NO_SHAPE | {"tokenizer": "bytes"}), tmp_path / "run", overwrite=True, quiet=True)
    assert set(files_of(tmp_path / "run")) == {"config.toml", "tokenizer.json"}


def test_a_byte_level_vocabulary_is_none_for_llama2c(text, tmp_path):
    config = tiny(text, model="llama", tokenizer="bpe:280")
    Trainer(config, tmp_path / "run", quiet=True, stop_after=1).train()
    with pytest.raises(UserError, match=r"holds SentencePiece's: train with --tokenizer sentencepiece:\d+, or save a"):
        convert(str(tmp_path / "run"), tmp_path / "tokenizer.bin", "tokenizer")
    assert "tokens" in convert(str(tmp_path / "run"), tmp_path / "tokenizer.json", "tokenizer")


def test_another_vocabulary_is_one_line(text, tmp_path, sentencepiece):
    path, _ = from_llama2c(tmp_path, sentencepiece)
    sentencepiece.save(tmp_path / "wide.model")
    narrow, _ = from_llama2c(tmp_path, Tokenizer.from_spec("sentencepiece:290", [TEXT.decode()]))
    own = r"knows 290: use the --tokenizer that it was made with, .*tokenizer\.bin"
    with pytest.raises(UserError, match=rf"wide\.model has 300 tokens, and .*model.bin {own}"):
        Trainer(tiny(text, init=str(narrow), **NO_SHAPE | {"tokenizer": str(tmp_path / "wide.model")}), quiet=True)
    (tmp_path / "tokenizer.bin").unlink()
    with pytest.raises(UserError, match=r"model\.bin has no tokenizer beside it: give --tokenizer, the one it was"):
        Trainer(tiny(text, init=str(path), **NO_SHAPE), quiet=True)
    wide = Llama(LlamaConfig(600, 24, layers=1, heads=2, channels=16), "reference", 2, 12).initialize()
    llama2c.write_model(tmp_path / "wide.bin", wide.config, wide.parameters)
    with pytest.raises(UserError, match=r"bytes has 257 tokens, and .*wide\.bin knows 600"):
        Trainer(tiny(text, init=str(tmp_path / "wide.bin"), **NO_SHAPE | {"tokenizer": "bytes"}), quiet=True)


def test_the_context_of_the_model_bounds_the_sequences(text, tmp_path, sentencepiece):
    path, _ = from_llama2c(tmp_path, sentencepiece)
    with pytest.raises(UserError, match="--sequence-length 25 is more than the model's context: give at most 24"):
        Trainer(tiny(text, init=str(path), sequence_length=25, **NO_SHAPE), quiet=True)


def test_stories260k_gets_better_on_more_stories(shared_data, tmp_path):
    """And begins where transformers has it: the loss over windows of stories, each behind BOS."""
    model = shared_data / "llama2c" / "stories260K.bin"
    (tmp_path / "stories.txt").write_text((shared_data / "tinystories" / "sample.txt").read_text()[:120_000])
    tokenizer = str(shared_data / "llama2c" / "tok512.bin")
    prepare(str(tmp_path / "stories.txt"), tokenizer, tmp_path / "shards", val_fraction=0.05)
    config = tiny(
        tmp_path / "shards", init=str(model), sequence_length=128, batch_size=4, steps=20, lr=5e-4, warmup=2,
        eval_every=20, eval_batches=-1, device="cpu", precision="float32", **NO_SHAPE,
    )  # fmt: skip
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    before = trainer.validate()
    assert 1.2 < before < 1.8
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    convert(str(model), tmp_path / "theirs")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "theirs")
    trainer.val_data.reset()
    x, y = trainer.val_data.next_batch()
    logits = theirs(torch.from_numpy(x).long()).logits.transpose(1, 2)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y).long()).item()
    assert trainer.model.loss(x, y) == pytest.approx(expected, abs=1e-4)
    trainer.train()
    assert trainer.val_loss < before
