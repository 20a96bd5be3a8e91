"""A tiny GPT-2 beside the same in PyTorch (float64, so that what differs is our rounding), and what it promises."""

import numpy as np
import pytest

from llmpy import UserError, kernels
from llmpy.kernels import cpu
from llmpy.models.gpt2 import GPT2, GPT2Config, GPT2Decoder
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.presets import from_descriptor
from llmpy.training.optimizer import AdamW
from tests.kernels.numerics import relative_error
from tests.models.decoding import check_decoding

CONFIG = GPT2Config(vocab_size=301, context=40, layers=3, heads=4, channels=48)
B, T = 4, 33
TOLERANCE = 1e-5


@pytest.fixture(scope="session", params=("reference", "cpu"))
def backend(request):
    kernels.start(request.param)
    return request.param


@pytest.fixture
def batch():
    random = np.random.default_rng(7)
    return tuple(random.integers(0, CONFIG.vocab_size, (B, T), dtype=np.int32) for _ in range(2))


def make(backend, batch_size=B, recompute=0, seed=42):
    """A model whose biases and norms are not 0 and 1: those hide mistakes."""
    model = GPT2(CONFIG, backend, batch_size, T, recompute).initialize(seed)
    random = np.random.default_rng(seed)
    for spec, view in model.parameters.items():
        view[: spec.rows] += 0.05 * random.standard_normal(view[: spec.rows].shape, dtype=np.float32)
    return model


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def theirs(torch):
    """PyTorch's model with the parameters of `make`."""
    from llmpy.bench.torch_peer.gpt2 import TorchGPT2

    return TorchGPT2(CONFIG).load(make("reference", None).parameters).double()


def test_logits_loss_and_gradients_agree_with_pytorch(torch, theirs, backend, batch):
    model = make(backend)
    x, y = (torch.from_numpy(a).long() for a in batch)
    loss = theirs(x, y)
    loss.backward()
    assert relative_error(model.logits(batch[0]), theirs.logits(x).detach().numpy()) < TOLERANCE
    assert model.loss(*batch) == pytest.approx(loss.item(), rel=1e-6)
    model.gradients.flat[:] = (
        np.nan
    )  # whatever was there, it is written; but for the padding, which nothing ever touches
    model.gradients.wte[CONFIG.vocab_size :] = 0
    assert model.loss_and_gradients(*batch) == pytest.approx(loss.item(), rel=1e-6)
    errors = {
        spec.name: relative_error(view[: spec.rows], theirs.stacked(spec, gradients=True))
        for spec, view in model.gradients.items()
    }
    assert len(errors) == 16
    assert max(errors.values()) < TOLERANCE, errors
    assert not model.gradients.wte[CONFIG.vocab_size :].any()


def test_ten_steps_of_adamw_agree_with_pytorch(torch, theirs, backend, batch):
    model = make(backend)
    ours = AdamW(model.kernels, model.parameters, model.gradients, model.arrays["m"], model.arrays["v"])
    optimizer = theirs.adamw(lr=1e-3, fused=False)
    x, y = (torch.from_numpy(a).long() for a in batch)
    for step in range(1, 11):
        loss = theirs(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert model.loss_and_gradients(*batch) == pytest.approx(loss.item(), rel=TOLERANCE)
        ours.update(step, 1e-3)
    for spec, view in model.parameters.items():
        actual, expected = view[: spec.rows], theirs.stacked(spec)
        if (
            spec.name == "qkvb"
        ):  # a bias of the keys shifts all scores of a query alike: its gradient is rounding, no more
            actual, expected = (np.delete(a.reshape(CONFIG.layers, 3, -1), 1, axis=1) for a in (actual, expected))
        # Twice that: where a gradient is rounding and no more, a step of AdamW is as large as any.
        assert relative_error(actual, expected) < 2 * TOLERANCE, spec.name
    assert not model.parameters.wte[CONFIG.vocab_size :].any(), "the padding stays zero"


def test_initial_values_are_those_of_pytorch(torch):
    """The drawing order of llm.c's train_gpt2.py: embeddings, then layer by layer."""
    model = GPT2(CONFIG, "reference").initialize(42)
    V, C, L = CONFIG.vocab_size, CONFIG.channels, CONFIG.layers
    torch.manual_seed(42)

    def drawn(*shape, std=0.02):
        return torch.empty(*shape).normal_(0.0, std).numpy()

    np.testing.assert_allclose(model.parameters.wte[:V], drawn(V, C), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(model.parameters.wpe, drawn(CONFIG.context, C), rtol=1e-5, atol=1e-8)
    for layer in range(L):
        for name, shape, std in (
            ("qkvw", (3 * C, C), 0.02),
            ("attprojw", (C, C), 0.02 / (2 * L) ** 0.5),
            ("fcw", (4 * C, C), 0.02),
            ("fcprojw", (C, 4 * C), 0.02 / (2 * L) ** 0.5),
        ):
            np.testing.assert_allclose(model.parameters[name][layer], drawn(*shape, std=std), rtol=1e-5, atol=1e-8)
    assert (model.parameters.ln1w == 1).all()
    assert not model.parameters.fcb.any()
    assert not model.parameters.wte[V:].any()


@pytest.mark.parametrize("recompute", [1, 2])
def test_recomputing_changes_no_bit(backend, batch, recompute):
    kept, again = make(backend), make(backend, recompute=recompute)
    assert again.memory.bytes < kept.memory.bytes
    assert again.loss_and_gradients(*batch) == kept.loss_and_gradients(*batch)
    np.testing.assert_array_equal(again.gradients.flat, kept.gradients.flat)


def test_two_halves_accumulated_are_the_whole_batch(backend, batch):
    whole, halves = make(backend), make(backend, batch_size=B // 2)
    loss = whole.loss_and_gradients(*batch)
    x, y = batch
    parts = [
        halves.loss_and_gradients(x[i : i + 2], y[i : i + 2], micro_steps=2, accumulate=i > 0) for i in range(0, B, 2)
    ]
    assert np.mean(parts) == pytest.approx(loss, rel=1e-6)
    for spec, view in halves.gradients.items():
        assert relative_error(view, whole.gradients[spec.name].astype(float)) < TOLERANCE, spec.name


def test_steps_repeat_bit_for_bit_at_any_number_of_threads(batch):
    results = []
    try:
        for threads in (1, 2, 1):
            cpu.set_threads(min(threads, cpu.physical_cores()))
            model = make("cpu")
            optimizer = AdamW(cpu, model.parameters, model.gradients, model.arrays["m"], model.arrays["v"])
            losses = []
            for step in range(1, 4):
                losses.append(model.loss_and_gradients(*batch))
                optimizer.update(step, 1e-3, 1 / optimizer.gradient_norm())
            results.append((losses, model.parameters.flat.tobytes()))
    finally:
        cpu.set_threads()
    assert results[0] == results[1] == results[2]


def test_decoding_gives_the_logits_of_the_whole(backend, batch):
    model = make(backend)
    whole = model.logits(batch[0]).astype(float)
    check_decoding(GPT2Decoder(StoredWeights.of(model.parameters, CONFIG), backend), batch[0][0], whole[0])


def test_a_shorter_sequence_uses_the_first_positions(backend, batch):
    model = GPT2(CONFIG, backend, 1, CONFIG.context)
    model.parameters.flat[:] = make(backend, None).parameters.flat
    padded = np.zeros((1, CONFIG.context), np.int32)
    padded[0, :T] = batch[0][0]
    assert relative_error(model.logits(padded)[0, :T], make(backend).logits(batch[0])[0].astype(float)) < TOLERANCE


def test_what_does_not_fit_is_said():
    with pytest.raises(UserError, match="sequence length of 41 is more than the model's context of 40"):
        GPT2(CONFIG, "reference", 1, 41)
    with pytest.raises(UserError, match="recompute is 0, 1 or 2, not 3"):
        GPT2(CONFIG, "reference", 1, recompute=3)
    with pytest.raises(UserError, match="GB of memory"):
        GPT2(from_descriptor("gpt3:c12288"), "reference", 64)
