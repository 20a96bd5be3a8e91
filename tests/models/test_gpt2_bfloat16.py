"""A tiny GPT-2 in bfloat16 beside itself in float32, and what it promises in either."""

import numpy as np
import pytest

from llmpy import kernels
from llmpy.kernels import cpu
from llmpy.models.gpt2 import GPT2, GPT2Config, GPT2Decoder
from llmpy.models.inference_weights import StoredWeights
from llmpy.training.optimizer import AdamW
from tests.kernels.numerics import relative_error
from tests.models.decoding import check_decoding

CONFIG = GPT2Config(vocab_size=301, context=40, layers=3, heads=4, channels=48)
B, T = 4, 33
# A number of bfloat16 is off by 2^-9 at most, by 0.1 % as a rule; tens of roundings one after the other leave less than
# 1 % in logits and gradients. Those of single tokens cancel in the mean loss.
LOSS, LOGITS, GRADIENTS = 5e-4, 0.015, 0.02


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    for precision in ("float32", "bfloat16"):
        kernels.start("cpu", precision=precision)


@pytest.fixture
def batch():
    random = np.random.default_rng(7)
    return tuple(random.integers(0, CONFIG.vocab_size, (B, T), dtype=np.int32) for _ in range(2))


def make(precision="bfloat16", recompute=0, stochastic=False, seed=0):
    """A model whose biases and norms are not 0 and 1: those hide mistakes."""
    model = GPT2(CONFIG, "cpu", B, T, recompute, precision, stochastic, seed).initialize(42)
    random = np.random.default_rng(42)
    for spec, view in model.parameters.items():
        view[: spec.rows] += 0.05 * random.standard_normal(view[: spec.rows].shape, dtype=np.float32)
    model.pack_weights()
    return model


def steps(model, batch, count=10):
    """The losses of so many steps of AdamW."""
    optimizer, losses = AdamW.of(model), []
    for step in range(1, count + 1):
        losses.append(model.loss_and_gradients(*batch))
        optimizer.update(step, 1e-3)
    return losses


def errors(actual, expected):
    """The relative error of every parameter's view, without the biases of keys: their gradients are rounding alone."""
    found = {}
    for spec, view in actual.items():
        pair = [x[: spec.rows].astype(float) for x in (view, expected[spec.name])]
        if spec.name == "qkvb":
            pair = [np.delete(x.reshape(CONFIG.layers, 3, -1), 1, axis=1) for x in pair]
        found[spec.name] = relative_error(*pair)
    return found


def test_logits_loss_and_gradients_are_close_to_those_of_float32(batch):
    model, wide = make(), make("float32")
    assert relative_error(model.logits(batch[0]), wide.logits(batch[0]).astype(float)) < LOGITS
    assert model.loss(*batch) == pytest.approx(wide.loss(*batch), rel=LOSS)
    model.gradients.flat[:] = np.nan  # whatever was there, it is written, but for the padding
    model.gradients.wte[CONFIG.vocab_size :] = 0
    assert model.loss_and_gradients(*batch) == pytest.approx(wide.loss_and_gradients(*batch), rel=LOSS)
    found = errors(model.gradients, wide.gradients)
    assert 1e-4 < max(found.values()) < GRADIENTS, found
    assert not model.gradients.wte[CONFIG.vocab_size :].any()


@pytest.mark.parametrize("stochastic", [False, True])
def test_ten_steps_follow_float32(batch, stochastic):
    """A step of AdamW is as large for a gradient that is rounding as for any other, so parameters move apart by a part
    of the way they went; the loss by less."""
    before, model, wide = make("float32"), make(stochastic=stochastic, seed=3), make("float32")
    np.testing.assert_allclose(steps(model, batch), steps(wide, batch), rtol=LOSS)
    apart = np.linalg.norm(model.parameters.flat - wide.parameters.flat)
    assert apart < 0.08 * np.linalg.norm(wide.parameters.flat - before.parameters.flat)
    assert not model.parameters.wte[CONFIG.vocab_size :].any(), "the padding stays zero"


@pytest.mark.parametrize("recompute", [1, 2])
def test_recomputing_changes_no_bit(batch, recompute):
    kept, again = make(), make(recompute=recompute)
    assert again.memory.bytes < kept.memory.bytes
    assert again.loss_and_gradients(*batch) == kept.loss_and_gradients(*batch)
    np.testing.assert_array_equal(again.gradients.flat, kept.gradients.flat)


def test_two_halves_accumulated_are_the_whole_batch(batch):
    whole, halves = make(), make()
    x, y = batch
    whole.loss_and_gradients(x, y)
    halves.loss_and_gradients(x, y, micro_steps=2)
    halves.loss_and_gradients(x, y, micro_steps=2, accumulate=True)
    assert max(errors(halves.gradients, whole.gradients).values()) < 1e-5  # half a gradient is rounded as the whole


@pytest.mark.parametrize("stochastic", [False, True])
def test_steps_repeat_bit_for_bit_at_any_number_of_threads(batch, stochastic):
    results = []
    try:
        for threads in (1, 2, 1):
            cpu.set_threads(min(threads, cpu.physical_cores()))
            model = make(stochastic=stochastic, seed=5)
            losses = steps(model, batch, 3)
            results.append((losses, model.parameters.flat.tobytes(), model.arrays["weights"].tobytes()))
    finally:
        cpu.set_threads()
    assert results[0] == results[1] == results[2]


def test_what_is_rounded_at_random_is_another_with_another_seed(batch):
    copies = []
    for seed in (5, 6):
        model = make(stochastic=True, seed=seed)
        steps(model, batch, 1)
        copies.append((model.parameters.flat.tobytes(), model.arrays["weights"].tobytes()))
    assert copies[0][0] == copies[1][0]  # the first step began with the nearest numbers
    assert copies[0][1] != copies[1][1]


def test_the_optimizer_leaves_the_copy_that_packing_makes(batch):
    for stochastic in (False, True):
        model = make(stochastic=stochastic, seed=9)
        steps(model, batch, 2)
        left = model.arrays["weights"].tobytes()
        model.pack_weights(2)
        assert model.arrays["weights"].tobytes() == left


def test_decoding_gives_the_logits_of_the_whole(batch):
    model = make()
    whole = model.logits(batch[0]).astype(float)
    decoder = GPT2Decoder(StoredWeights.of(model.parameters, CONFIG).converted("BF16"), precision="bfloat16")
    assert decoder.arrays["keys"].itemsize == 2
    check_decoding(decoder, batch[0][0], whole[0], LOGITS)


def test_memory_is_what_the_plan_says():
    model, wide = make(), make("float32")
    groups = {}
    for entry in model.memory.entries:
        groups[entry.group] = groups.get(entry.group, 0) + model.arrays[entry.name].nbytes
        assert model.arrays[entry.name].nbytes <= entry.padded_bytes < model.arrays[entry.name].nbytes + 64
    assert sum(groups.values()) <= model.memory.bytes
    products = [view for spec, view in model.parameters.items() if spec.product]
    least = sum(2 * view.size for view in products)
    assert least <= groups["bfloat16 weights"] < 3 * least  # twice where it is packed both ways, and some padding
    assert groups["activations"] < 0.6 * sum(e.bytes for e in wide.memory.entries if e.group == "activations")
    for group in groups:
        assert f"{group} {groups[group] / 1e6:,.0f}" in model.memory.report()
    assert "bfloat16" not in wide.memory.report()
