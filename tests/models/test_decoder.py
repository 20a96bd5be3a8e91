"""What decoders of both families promise of their slots."""

from dataclasses import replace

import numpy as np
import pytest

from llmpy import UserError, kernels
from llmpy.models import decoder as decoder_module
from llmpy.models.decoder import MOST_POSITIONS
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.registry import new_decoder, new_model
from llmpy.utils import system_memory
from tests.kernels.numerics import relative_error
from tests.models.decoding import one

GPT2 = GPT2Config(vocab_size=61, context=40, layers=3, heads=3, channels=24)
LLAMA = LlamaConfig(61, 40, layers=3, heads=4, kv_heads=2, channels=24, hidden=40, rope_theta=500.0)
HALVES = replace(LLAMA, rope_interleaved=False)
TEXTS = np.random.default_rng(3).integers(0, 61, (3, 33), dtype=np.int32)


@pytest.fixture(scope="module", params=["reference", "float32", "bfloat16"])
def make(request):
    """`make(config, sequences, ...)` -> a decoder of a model whose biases and norms are not 0 and 1."""
    backend = "reference" if request.param == "reference" else "cpu"
    kernels.start(backend, precision="float32" if backend == "reference" else request.param)

    def make(config, sequences=1, context=None):
        model = new_model(config, backend).initialize(42)
        random = np.random.default_rng(42)
        for spec, view in model.parameters.items():
            view[: spec.rows] += 0.1 * random.standard_normal(view[: spec.rows].shape)
        weights, precision = StoredWeights.of(model.parameters, config), "float32"
        if request.param == "bfloat16":
            weights, precision = weights.converted("BF16"), "bfloat16"
        return new_decoder(weights, backend, sequences, context, precision)

    make.tolerance = 1e-5 if request.param != "bfloat16" else 0.03
    return make


@pytest.mark.parametrize("config", [GPT2, LLAMA, HALVES])
def test_sequences_of_their_own_lengths_side_by_side(make, config):
    """Each has the logits that it has alone, whatever its slot and whoever is beside it."""
    lengths, slots = (7, 25, 1), (2, 0, 4)
    alone = []
    for text, length in zip(TEXTS, lengths, strict=True):
        decoder = make(config)
        decoder.prefill(text[:length])
        alone.append([decoder.decode(text[p : p + 1], one(p), one(0))[0].copy() for p in range(length, length + 4)])
    decoder = make(config, 5)
    for text, length, slot in zip(TEXTS, lengths, slots, strict=True):
        decoder.prefill(text[:length], slot)
    positions = one(*lengths)
    for step in range(4):
        order = np.roll(np.arange(3), step)
        tokens = TEXTS[order, positions[order] + step]
        logits = decoder.decode(tokens, positions[order] + np.int32(step), one(*slots)[order])
        for row, i in enumerate(order):
            assert relative_error(logits[row], alone[i][step].astype(float)) < make.tolerance


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_prompt_is_read_in_blocks(make, config, monkeypatch):
    whole = make(config).prefill(TEXTS[0]).astype(float)
    monkeypatch.setattr(decoder_module, "BLOCK", 8)
    decoder = make(config, 3)
    assert len(decoder.arrays["x"]) == 8
    assert relative_error(decoder.prefill(TEXTS[0], 1), whole) < make.tolerance
    decoder.prefill(TEXTS[1], 1)
    decoder.prefill(TEXTS[0][:11], 1)
    assert relative_error(decoder.prefill(TEXTS[0][11:], 1, 11), whole) < make.tolerance


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_shared_beginning_is_copied(make, config):
    text = TEXTS[0]
    decoder = make(config, 4)
    expected = decoder.prefill(text, 3).copy()
    decoder.prefill(text[:20], 1)
    decoder.copy(1, 20, [0, 2])
    decoder.prefill(TEXTS[1], 1)
    for slot in (0, 2):
        assert relative_error(decoder.prefill(text[20:], slot, 20), expected.astype(float)) < make.tolerance


def test_logits_of_a_prompt_and_of_a_step_do_not_disturb_one_another(make):
    decoder = make(LLAMA, 2)
    decoder.prefill(TEXTS[0, :5], 0)
    stepped = decoder.decode(TEXTS[0, 5:6], one(5), one(0))
    before = stepped.copy()
    read = decoder.prefill(TEXTS[1, :5], 1)
    after = read.copy()
    np.testing.assert_array_equal(stepped, before)
    decoder.decode(TEXTS[:2, 6], one(6, 5), one(0, 1))
    np.testing.assert_array_equal(read, after)


@pytest.mark.parametrize("config", [LLAMA, HALVES])
@pytest.mark.parametrize(("keep", "drop"), [(4, 15), (0, 1), (1, 31)])
def test_a_slot_that_is_shifted_holds_the_text_without_what_was_dropped(make, config, keep, drop):
    """In one layer, where keys and values are those of the tokens and of no context."""
    text, config = TEXTS[0], replace(config, layers=1)
    decoder = make(config, 3)
    other = decoder.prefill(TEXTS[1], 0).astype(float)
    decoder.prefill(text[:32], 1)
    decoder.shift(1, keep, drop)
    shorter = np.concatenate([text[:keep], text[keep + drop :]])
    expected = make(config).prefill(shorter).astype(float)
    logits = decoder.decode(text[32:], one(32 - drop), one(1))[0]
    assert relative_error(logits, expected) < make.tolerance
    assert relative_error(decoder.prefill(TEXTS[1, -1:], 0, 32), other) < make.tolerance  # others are where they were


def test_learned_positions_cannot_be_shifted(make):
    decoder = make(GPT2)
    assert not decoder.can_shift
    with pytest.raises(NotImplementedError):
        decoder.shift(0, 4, 10)


def test_more_than_the_context_is_refused(make):
    decoder = make(LLAMA, 1, context=12)
    for tokens, start in ((TEXTS[0, :13], 0), (TEXTS[0, :3], 10), (TEXTS[0, :0], 0)):
        with pytest.raises(ValueError, match="not in a context of 12"):
            decoder.prefill(tokens, 0, start)


def test_the_cache_of_a_long_context_is_cut(make):
    config = replace(LLAMA, context=131072)
    assert make(config).config == replace(LLAMA, context=MOST_POSITIONS)
    assert make(config, context=5000).config.context == 5000
    assert make(config, context=7).arrays["keys"].shape[2] == 7


def test_what_cannot_be_had_is_said(make, monkeypatch):
    for context in (0, 41):
        with pytest.raises(UserError, match=f"a context of {context} tokens .* positions for 40"):
            make(LLAMA, context=context)
    decoder = make(LLAMA, 3)
    precision = "float32" if decoder.numbers is np.float32 else "bfloat16"
    monkeypatch.setattr(system_memory, "available_memory", lambda: system_memory.RESERVE + decoder.memory.bytes - 1)
    with pytest.raises(UserError, match=r"GB are free: the cache holds 40 tokens of 3 texts.*--context"):
        new_decoder(decoder.weights, "reference", 3, None, precision)
    assert new_decoder(decoder.weights, "reference", 3, 39, precision).config.context == 39
