"""Shapes of models: descriptors, padding, and what cannot be."""

import pytest

from llmpy import UserError
from llmpy.models.config import RopeScaling
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.llama import LlamaConfig
from llmpy.models.presets import GPT2_DEPTHS, GPT3_CHANNELS, LLAMA_SIZES, from_descriptor, shape_of


@pytest.mark.parametrize("depth", GPT2_DEPTHS)
def test_gpt2_by_depth(depth):
    config = from_descriptor(f"d{depth}")
    assert (config.layers, config.channels, config.heads) == (depth, *GPT2_DEPTHS[depth])
    assert (config.vocab_size, config.context) == (50257, 1024)
    assert config == from_descriptor(f"gpt2:d{depth}")


@pytest.mark.parametrize("channels", GPT3_CHANNELS)
def test_gpt3_by_channels(channels):
    config = from_descriptor(f"gpt3:c{channels}", vocab_size=300, context=64)
    assert (config.layers, config.head_size) == GPT3_CHANNELS[channels]
    assert (config.channels, config.vocab_size, config.context) == (channels, 300, 64)


@pytest.mark.parametrize("descriptor", ["d13", "gpt3:c100", "", "d", "D12", "gpt3:d12", "llama", "d12 "])
def test_what_is_no_descriptor_is_refused_with_those_that_are(descriptor):
    with pytest.raises(UserError, match=r"no model is named .*d\{6,12,.*gpt3:c\{384,768"):
        from_descriptor(descriptor)


@pytest.mark.parametrize(("vocab_size", "padded"), [(1, 128), (128, 128), (129, 256), (257, 384), (50257, 50304)])
def test_the_vocabulary_is_padded_to_128(vocab_size, padded):
    assert GPT2Config(vocab_size=vocab_size).padded_vocab_size == padded


def test_heads_that_do_not_fit_are_refused_with_those_that_do():
    with pytest.raises(UserError, match="384 channels cannot be shared by 7 heads: use 4, 6, 8 heads"):
        GPT2Config(channels=384, heads=7)


@pytest.mark.parametrize("value", [0, -1, 1.5, "12", None, True])
@pytest.mark.parametrize("name", ["vocab_size", "context", "layers", "heads", "channels"])
def test_sizes_are_whole_numbers_of_one_or_more(name, value):
    with pytest.raises(UserError, match=f"{name} must be a whole number of 1 or more"):
        GPT2Config(**{name: value})


@pytest.mark.parametrize("size", LLAMA_SIZES)
def test_llama_by_size(size):
    config = from_descriptor(f"llama:{size}")
    assert config == LlamaConfig(**LLAMA_SIZES[size]) == from_descriptor(f"llama:{size}")
    other = from_descriptor(f"llama:{size}", vocab_size=300, context=64)
    assert (other.vocab_size, other.context) == (300, 64)
    assert other.channels == config.channels


def test_either_family_by_its_descriptor():
    assert from_descriptor("d12") == GPT2Config()
    assert from_descriptor("gpt3:c768", 300, 64) == GPT2Config(300, 64)
    for name, known in (
        ("llama:7", r"llama:\{260K,15M,"),
        ("llama:", r"llama:\{260K,15M,"),
        ("d13", r"d\{6,12,"),
        ("15M", r"d\{6,12,.*llama:\{260K,15M,"),
    ):
        with pytest.raises(UserError, match=rf"no model is named .*{known}"):
            from_descriptor(name)


def test_what_a_llama_leaves_open_follows():
    config = LlamaConfig(heads=6, channels=288)
    assert (config.kv_heads, config.hidden, config.head_size) == (6, 768, 48)
    assert LlamaConfig(channels=512, heads=8).hidden == 1376
    assert LlamaConfig(heads=3, channels=64, head_size=16).head_size == 16
    assert config == LlamaConfig(heads=6, kv_heads=6, channels=288, hidden=768, head_size=48)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 7}, "768 channels cannot be shared by 7 heads: use 4, 6, 8 heads"),
        ({"kv_heads": 5}, "12 heads cannot share 5 heads of keys and values: use 1, 2, 3, 4, 6, 12"),
        ({"channels": 36}, "head size must be even.*not 3"),
        ({"hidden": -1}, "hidden must be a whole number of 1 or more, not -1"),
        ({"head_size": 2.0}, "head_size must be a whole number of 1 or more, not 2.0"),
        ({"layers": 0}, "layers must be a whole number of 1 or more, not 0"),
        ({"rope_theta": 0}, "rope_theta must be a number above 0, not 0"),
        ({"norm_eps": float("nan")}, "norm_eps must be a number above 0, not nan"),
    ],
)
def test_a_llama_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        LlamaConfig(**fields)


def test_a_scaling_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="high_freq_factor must be above low_freq_factor"):
        RopeScaling(high_freq_factor=1.0)
    with pytest.raises(UserError, match="factor must be a number above 0"):
        RopeScaling(factor=-8)


def test_sizes_go_over_those_of_a_named_shape():
    assert shape_of("llama:15M", 500, 64) == LlamaConfig(500, 64, layers=6, heads=6, channels=288)
    assert shape_of("llama:15M", 500, 64, layers=2, channels=96) == LlamaConfig(
        500, 64, layers=2, heads=6, channels=96, hidden=256, head_size=16
    )
    halved = shape_of("llama:260K", heads=4)
    assert (halved.heads, halved.kv_heads, halved.head_size, halved.hidden) == (4, 2, 16, 172)
    assert shape_of("llama:260K", heads=1).kv_heads == 1
    assert shape_of("llama:260K", kv_heads=8, hidden=99).hidden == 99
    assert shape_of("d12", 257, 64, layers=2) == GPT2Config(257, 1024, 2, 12, 768)


def test_a_shape_of_ones_own():
    assert shape_of(None, 257, 64, channels=96) == GPT2Config(257, 64, 3, 3, 96)
    assert shape_of("llama", 257, 64, kv_heads=1) == LlamaConfig(257, 64, layers=3, heads=2, kv_heads=1, channels=128)
    with pytest.raises(UserError, match="2 heads cannot share 3 heads of keys and values"):
        shape_of("llama", 257, 64, kv_heads=3)
    with pytest.raises(UserError, match=r"no model is named 'llama:15'.*llama \(with a shape of your own\)"):
        shape_of("llama:15")
