"""Shapes of models: descriptors, padding, and what cannot be."""

import pytest

from llmpy import UserError
from llmpy.config import GPT2_DEPTHS, GPT3_CHANNELS, GPT2Config


@pytest.mark.parametrize("depth", GPT2_DEPTHS)
def test_gpt2_by_depth(depth):
    config = GPT2Config.from_descriptor(f"d{depth}")
    assert (config.layers, config.channels, config.heads) == (depth, *GPT2_DEPTHS[depth])
    assert (config.vocab_size, config.context) == (50257, 1024)
    assert config == GPT2Config.from_descriptor(f"gpt2:d{depth}")


@pytest.mark.parametrize("channels", GPT3_CHANNELS)
def test_gpt3_by_channels(channels):
    config = GPT2Config.from_descriptor(f"gpt3:c{channels}", vocab_size=300, context=64)
    assert (config.layers, config.head_size) == GPT3_CHANNELS[channels]
    assert (config.channels, config.vocab_size, config.context) == (channels, 300, 64)


@pytest.mark.parametrize("descriptor", ["d13", "gpt3:c100", "", "d", "D12", "gpt3:d12", "llama", "d12 "])
def test_what_is_no_descriptor_is_refused_with_those_that_are(descriptor):
    with pytest.raises(UserError, match=r"no model is named .*d\{6,12,.*gpt3:c\{384,768"):
        GPT2Config.from_descriptor(descriptor)


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
