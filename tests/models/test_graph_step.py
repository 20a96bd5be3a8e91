"""A training step on a GPU, end to end in Triton's interpreter, beside the reference in float32."""

from dataclasses import replace

import numpy as np
import pytest

from llmpy.models.gpt2 import GPT2Config
from llmpy.models.llama import LlamaConfig
from llmpy.models.registry import new_model
from llmpy.training.optimizer import AdamW, clip_scale
from tests.kernels import on_device  # noqa: F401  asks for the interpreter before Triton is imported
from tests.kernels.numerics import relative_error

pytest.importorskip("triton")
B, T, V = 2, 13, 61
GPT2 = GPT2Config(vocab_size=V, layers=2, heads=2, channels=40, context=16)
LLAMA = LlamaConfig(vocab_size=V, context=16, layers=2, heads=4, kv_heads=2, channels=32, hidden=40)
SHAPES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama, halves, biases, own head": replace(LLAMA, rope_interleaved=False, qkv_bias=True, tied=False),
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # of a gradient, by norms; a few roundings to 8 bits add up


def make(backend, config, **options):
    """A model whose biases and norms are not 0 and 1: those hide mistakes."""
    model, random = new_model(config, backend, B, T, **options).initialize(42), np.random.default_rng(42)
    with model.parameters.on_host() as parameters:
        for spec, view in parameters.items():
            view[: spec.rows] += 0.05 * random.standard_normal(view[: spec.rows].shape, dtype=np.float32)
    model.pack_weights()
    return model


def batches(count, seed=7):
    random = np.random.default_rng(seed)
    found = random.integers(0, V, (count, 2, B, T), dtype=np.int32)
    found[:, 1, 0, :2] = -1  # no targets
    return found


def learn(model, steps, micro_steps=1):
    """(loss of each micro-step, norm of each step) of so many steps of AdamW."""
    optimizer, losses, norms, data = AdamW.of(model), [], [], iter(batches(steps * micro_steps))
    for step in range(steps):
        made = [model.loss_and_gradients(*next(data), micro_steps, micro > 0, step + 5) for micro in range(micro_steps)]
        norms.append(optimizer.gradient_norm())
        losses += map(float, made)
        optimizer.update(step + 1, 1e-3, clip_scale(norms[-1], 1.0))
    return losses, norms


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_loss_gradients_and_steps_are_those_of_the_reference(config, precision):
    ours, theirs = make("cuda", config, precision=precision), make("reference", config)
    x, y = batches(1)[0]
    assert float(ours.loss(x, y)) == pytest.approx(theirs.loss(x, y), rel=TOLERANCE[precision] / 10)
    assert relative_error(ours.logits(x), theirs.logits(x).astype(np.float64)) < TOLERANCE[precision]
    for model in (ours, theirs):
        model.loss_and_gradients(x, y)
    for spec, expected in theirs.gradients.items():
        got = ours.gradients[spec.name].numpy()
        assert relative_error(got, expected.astype(np.float64)) < TOLERANCE[precision], spec.name
    (losses, norms), (their_losses, their_norms) = learn(ours, 4, 2), learn(theirs, 4, 2)
    np.testing.assert_allclose(losses, their_losses, rtol=TOLERANCE[precision] / 10)
    np.testing.assert_allclose(norms, their_norms, rtol=TOLERANCE[precision])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_ten_steps_on_one_batch_lose_as_they_do_on_the_cpu(precision, tolerance):
    x, y = batches(1)[0]
    losses = []
    for backend in ("cuda", "cpu"):
        model = make(backend, GPT2, precision=precision)
        optimizer, made = AdamW.of(model), []
        for step in range(10):
            made.append(float(model.loss_and_gradients(x, y)))
            optimizer.update(step + 1, 3e-3, clip_scale(optimizer.gradient_norm(), 1.0))
        losses.append(made)
    np.testing.assert_allclose(losses[0], losses[1], atol=tolerance)
    assert losses[0][-1] < losses[0][0] - 0.5


@pytest.mark.parametrize("recompute", [1, 2])
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_what_is_made_again_is_the_same_to_the_bit(config, recompute):
    whole, again = (make("cuda", config, recompute=level, precision="bfloat16") for level in (0, recompute))
    x, y = batches(1)[0]
    assert float(whole.loss_and_gradients(x, y)) == float(again.loss_and_gradients(x, y))
    np.testing.assert_array_equal(whole.gradients.flat.numpy(), again.gradients.flat.numpy())


def test_dropout_is_that_of_the_reference():
    ours, theirs = (make(backend, GPT2, dropout=0.3) for backend in ("cuda", "reference"))
    (losses, norms), expected = learn(ours, 2), learn(theirs, 2)
    np.testing.assert_allclose((losses, norms), expected, rtol=1e-5)


def test_losses_that_are_asked_for_late_are_those_of_their_batches():
    model = make("cuda", LLAMA)
    data = batches(5)
    late = [model.loss_and_gradients(*batch) for batch in data]
    assert [float(loss) for loss in late] == [float(model.loss_and_gradients(*batch)) for batch in data]
    assert len({float(loss) for loss in late}) == 5


def test_after_the_first_step_no_memory_is_taken(monkeypatch):
    model = make("cuda", GPT2, precision="bfloat16")
    learn(model, 1, 2)
    monkeypatch.setattr(type(model.kernels.device.current()), "take", lambda *_: pytest.fail("memory is taken"))
    learn(model, 2, 2)
    model.loss(*batches(1)[0])
