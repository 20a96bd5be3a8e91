"""Decoders and engines on the device, beside the reference: the same logits, and the same tokens."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.kernels import on_device  # noqa: F401  (before Triton is imported)

pytest.importorskip("triton")

from llmpy.inference.engine import Engine
from llmpy.inference.sampling import Sampling
from llmpy.inference.scheduler import Batch
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.models import decoder as decoder_module
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters
from llmpy.models.registry import new_decoder, new_model
from tests.kernels.numerics import relative_error
from tests.models.decoding import check_decoding, one

GPT2 = GPT2Config(vocab_size=61, context=40, layers=2, heads=3, channels=24)
LLAMA = LlamaConfig(61, 40, layers=2, heads=4, kv_heads=2, channels=32, hidden=64, rope_theta=500.0)
HALVES = replace(LLAMA, rope_interleaved=False, qkv_bias=True, tied=False)
FAMILIES = pytest.mark.parametrize("config", [GPT2, LLAMA, HALVES], ids=["gpt2", "llama", "halves"])
PRECISIONS = {"float32": ("F32", "float32", 1e-5), "bf16": ("BF16", "bfloat16", 0.02), "q8": ("Q8_0", "float32", 1e-4)}
TEXTS = np.random.default_rng(3).integers(0, 61, (4, 36), dtype=np.int32)
GREEDY = Sampling(temperature=0.0)


def weights_of(config, kind="F32"):
    """Of a model whose biases and norms are not 0 and 1."""
    model, random = new_model(config, "reference").initialize(42), np.random.default_rng(42)
    for spec, view in model.parameters.items():
        view[: spec.rows] += 0.1 * random.standard_normal(view[: spec.rows].shape)
    return StoredWeights.of(model.parameters, config).converted(kind)


def both(config, precision="float32", sequences=1, **options):
    """Ours, the reference's of the same weights, and how far they may differ."""
    kind, computing, tolerance = PRECISIONS[precision]
    weights = weights_of(config, kind)
    ours = new_decoder(weights, "cuda", sequences, precision=computing, **options)
    return ours, new_decoder(weights, "reference", sequences, **options), tolerance


@FAMILIES
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_text_read_or_decoded_has_the_logits_of_the_reference(config, precision):
    ours, theirs, tolerance = both(config, precision)
    text = TEXTS[0, :23]
    whole = [theirs.decode(text[p : p + 1], one(p), one(0))[0].astype(float) for p in range(len(text))]
    check_decoding(ours, text, whole, tolerance)


@FAMILIES
def test_sequences_of_their_own_lengths_side_by_side(config):
    ours, theirs, tolerance = both(replace(config, layers=1), sequences=5)
    lengths, slots = (7, 25, 1), (2, 0, 4)
    for decoder in (ours, theirs):
        for text, length, slot in zip(TEXTS, lengths, slots, strict=False):
            decoder.prefill(text[:length], slot)
    for step in range(2):
        order = np.roll(np.arange(3), step)
        positions = one(*lengths)[order] + np.int32(step)
        arguments = TEXTS[order, positions], positions, one(*slots)[order]
        expected = theirs.decode(*arguments).astype(float)
        assert relative_error(ours.decode(*arguments), expected) < tolerance


@pytest.mark.parametrize("config", [GPT2, HALVES], ids=["gpt2", "halves"])
def test_a_prompt_is_read_in_blocks_and_its_beginning_copied(config, monkeypatch):
    monkeypatch.setattr(decoder_module, "BLOCK", 16)
    ours, theirs, tolerance = both(replace(config, layers=1), sequences=3)
    expected = theirs.prefill(TEXTS[0]).astype(float)
    assert len(ours.arrays["x"]) == 16
    ours.prefill(TEXTS[0, :20], 1)
    ours.copy(1, 20, [0, 2])
    ours.prefill(TEXTS[1], 1)
    for slot in (0, 2):
        assert relative_error(ours.prefill(TEXTS[0, 20:], slot, 20), expected) < tolerance


@pytest.mark.parametrize("config", [LLAMA, HALVES], ids=["llama", "halves"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("keep", "drop"), [(4, 15), (0, 1)])
def test_a_slot_that_is_shifted_holds_the_text_without_what_was_dropped(config, precision, keep, drop):
    """In one layer, where keys and values are those of the tokens and of no context."""
    ours, theirs, tolerance = both(replace(config, layers=1), precision, sequences=2)
    ours.prefill(TEXTS[1, :33], 0)
    ours.prefill(TEXTS[0, :32], 1)
    ours.shift(1, keep, drop)
    shorter = np.concatenate([TEXTS[0, :keep], TEXTS[0, keep + drop : 33]])
    expected = theirs.prefill(shorter).astype(float)
    logits = ours.decode(TEXTS[0, 32:33], one(32 - drop), one(1))[0]
    assert relative_error(logits, expected) < tolerance
    expected = theirs.prefill(TEXTS[1, :33]).astype(float)
    assert relative_error(ours.prefill(TEXTS[1, 32:33], 0, 32), expected) < tolerance  # others are where they were


def test_logits_of_a_prompt_and_of_a_step_do_not_disturb_one_another():
    ours, *_ = both(LLAMA, sequences=2)
    ours.prefill(TEXTS[0, :5], 0)
    stepped = ours.decode(TEXTS[0, 5:6], one(5), one(0))
    before = stepped.copy()
    ours.prefill(TEXTS[1, :5], 1)
    np.testing.assert_array_equal(stepped, before)


@FAMILIES
def test_a_batch_gives_the_tokens_of_the_reference(config):
    """Of prompts of all lengths, with more of them than slots, one of them longer than the context allows."""
    texts = []
    for decoder in both(replace(config, layers=1), sequences=2)[:2]:
        batch = Batch(decoder)
        requests = [
            batch.submit(TEXTS[i, :length], GREEDY, max_tokens=tokens)
            for i, (length, tokens) in enumerate([(5, 6), (1, 3), (17, 4), (36, 6)])
        ]
        list(batch.run())
        texts.append([request.tokens for request in requests])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("config", [replace(GPT2, channels=32, heads=2), LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("precision", ["stored", "bfloat16", "q8"])
def test_an_engine_gives_the_tokens_of_the_reference(config, precision):
    weights = weights_of(config, {"stored": "F32", "bfloat16": "BF16", "q8": "Q8_0"}[precision])
    model = SimpleNamespace(config=config, stored=weights)
    ours = list(Engine(model, "cuda").generate(TEXTS[0, :6], 6, temperature=0))
    assert ours == list(Engine(model, "reference", precision="stored").generate(TEXTS[0, :6], 6, temperature=0))


def test_a_model_in_training_is_read_where_it_lies():
    """What changes in its parameters changes what is generated; nothing is copied."""
    model = new_model(LLAMA, "reference").initialize(42)
    there = DeviceArray.of(model.parameters.flat)
    training = SimpleNamespace(config=LLAMA, parameters=Parameters(model.parameters.table, there))
    ours, theirs = Engine(training, "cuda"), Engine(model, "reference")
    for seed in (42, 43):
        model.initialize(seed)
        there[...] = model.parameters.flat
        expected = list(theirs.generate([3, 1], 6, temperature=0))
        assert list(ours.generate([3, 1], 6, temperature=0)) == expected
