"""Settings of a run: what can be, what is said of what cannot, and config.toml there and back."""

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpy import UserError
from llmpy.training.config import TrainConfig, as_settings, from_settings, merged
from llmpy.training.config_file import read_toml, to_toml

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"--steps must be at least 1 \(or -1\), not 0"),
        ({"steps": 2.0}, "--steps must be a whole number, not 2.0"),
        ({"batch_size": True}, "--batch-size must be a whole number"),
        ({"batch_size": 2**70}, "--batch-size is too large"),
        ({"lr": float("nan")}, "--lr must be"),
        ({"clip": float("inf")}, "--clip must be"),
        ({"lr": "fast"}, "--lr must be a number, not 'fast'"),
        ({"beta2": 1.0}, "--beta2 must be at least 0 and at most 0.999999"),
        ({"final_lr_fraction": 1.5}, "--final-lr-fraction must be at least 0 and at most 1"),
        ({"schedule": "steps"}, "--schedule is one of cosine, linear, constant, wsd"),
        ({"overfit": 1}, "--overfit must be true or false"),
        ({"data": ""}, "--data is empty"),
        ({"seed": -1}, "--seed must be"),
        ({"recompute": 3}, "--recompute is one of 0, 1, 2"),
        ({"device": "gpu"}, "--device is auto, cpu, cuda, cuda:N or reference, not gpu"),
        ({"precision": "fp16"}, "--precision is one of float32, bfloat16, auto, fp32, bf16, not fp16"),
        ({"model": "model.bin", "layers": 3}, "--init model.bin has a shape: leave out --layers"),
        ({"init": "model.bin", "model": "llama:15M"}, "--init model.bin has a shape: leave out --model"),
        ({"init": "model.bin", "vocab_size": 300}, "--init model.bin has a shape: leave out --vocab-size"),
        ({"model": "d12", "kv_heads": 3}, "--kv-heads is a size of Llamas: add --model llama"),
        ({"hidden": 3}, "--hidden is a size of Llamas: add --model llama"),
        ({"batches": "stories"}, "--batches is one of stream, windows, documents"),
        ({"batch_size": 4, "sequence_length": 8, "total_batch_tokens": 100}, "no multiple of 4 .* of 8 .*: give 96"),
        ({"batch_size": 4, "sequence_length": 8, "total_batch_tokens": 16}, "give 32"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)


def test_a_step_is_made_of_as_many_batches_as_it_takes():
    config = TrainConfig(batch_size=4, sequence_length=8, total_batch_tokens=96)
    assert (config.micro_steps, config.step_tokens) == (3, 96)
    config = TrainConfig(batch_size=4, sequence_length=8)
    assert (config.micro_steps, config.step_tokens) == (1, 32)
    assert type(TrainConfig(lr=1).lr) is float


@given(data=NAMES, prompt=st.text(st.characters(codec="utf-8")), lr=st.floats(0, 1e6), seed=st.integers(0, 2**32 - 1))
def test_config_toml_says_it_all(tmp_path, data, prompt, lr, seed):
    path = tmp_path / "config.toml"
    config = TrainConfig(data=data, sample_prompt=prompt, lr=lr, seed=seed, overfit=True, layers=3)
    path.write_bytes(to_toml(config).encode())
    assert from_settings(read_toml(path, sealed=True)) == config


def test_config_toml_explains_every_setting():
    text = to_toml(TrainConfig())
    for setting in dataclasses.fields(TrainConfig):
        assert f"{setting.name} =" in text
        assert f"# {setting.metadata['help']}" in text
    assert all(len(line) <= 120 or line.startswith("# ") for line in text.splitlines())


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(tmp_path, position, bit):
    path = tmp_path / "config.toml"
    data = bytearray(to_toml(TrainConfig()).encode())
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"config\.toml"):
        read_toml(path, sealed=True)


@given(length=st.integers(0, 10**6))
def test_a_cut_file_is_refused(tmp_path, length):
    path = tmp_path / "config.toml"
    text = to_toml(TrainConfig())
    path.write_text(text[: length % (len(text) - 1)])
    with pytest.raises(UserError, match=r"config\.toml"):
        read_toml(path, sealed=True)


def test_an_edited_file_says_how_it_can_be_used(path):
    text = to_toml(TrainConfig()).replace("seed = 42", "seed = 43")
    path.write_text(text)
    with pytest.raises(UserError, match="if you edited it, remove its last line"):
        read_toml(path)
    with pytest.raises(UserError, match="restore it, and change settings by flags"):
        read_toml(path, sealed=True)
    path.write_text(text[: text.rindex("#")])
    assert read_toml(path)["seed"] == 43
    with pytest.raises(UserError, match="not as the run wrote it"):
        read_toml(path, sealed=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlearning_rate = 1", r"no setting learning_rate in \[optimizer\]"),
        ("[optimizer]\nstep = 1", r"\[optimizer\] steps is one"),
        ("[model]\nsteps = 1", r"no setting steps in \[model\]: \[optimizer\] steps is one"),
        ("steps = 1", r"steps stands outside of a \[section\]: \[optimizer\] steps is one"),
        ("[optimizer", "damaged or no TOML"),
        ("\udcff", "damaged or no TOML"),
    ],
)
def test_a_file_written_by_hand_is_checked(path, text, message):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"config\.toml.*{message}"):
        read_toml(path)


def test_a_missing_file_is_said(path):
    with pytest.raises(UserError, match=r"cannot read .*config\.toml: No such file"):
        read_toml(path)


def test_a_value_that_cannot_be_names_the_file():
    with pytest.raises(UserError, match=r"^my\.toml: --steps must be"):
        from_settings({"steps": 0}, "my.toml")


def test_flags_go_over_a_file_and_a_model_over_a_shape():
    shape = {"layers": 2, "heads": 2, "channels": 64, "steps": 5}
    assert merged(shape, {"steps": 7})["steps"] == 7
    assert TrainConfig(**merged(shape, {"model": "d12"})) == TrainConfig(model="d12", steps=5)
    assert TrainConfig(**merged(shape, {"model": "a.bin"})) == TrainConfig(init="a.bin", steps=5)
    assert TrainConfig(**merged({"model": "a.bin"}, {"layers": 2})) == TrainConfig(layers=2)
    assert TrainConfig(**merged({"init": "a.bin"}, {"model": "d12"})) == TrainConfig(model="d12")
    assert TrainConfig(**merged({"model": "llama:15M"}, {"layers": 2})) == TrainConfig(model="llama:15M", layers=2)


def test_a_model_that_is_no_shape_is_one_to_start_from():
    assert TrainConfig(model="gpt2") == TrainConfig(init="gpt2")
    assert TrainConfig(model="llama:15M", kv_heads=2).sizes == {"kv_heads": 2}


def test_the_file_is_toml_that_others_read():
    sections = tomllib.loads(to_toml(TrainConfig(data='a "quoted"\tname\x7f')))
    assert sections["data"]["data"] == 'a "quoted"\tname\x7f'
    known = set(as_settings(TrainConfig()))
    assert all(set(section) <= known for section in sections.values())
