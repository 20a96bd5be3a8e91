"""Tiny Llamas beside those of `transformers` (float64, so that what differs is our rounding), and what they promise."""

from dataclasses import replace

import numpy as np
import pytest

from llmpy import UserError, kernels
from llmpy.kernels import cpu
from llmpy.models.config import RopeScaling
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import Llama, LlamaConfig, LlamaDecoder
from llmpy.models.presets import from_descriptor
from llmpy.training.optimizer import AdamW
from tests.kernels.numerics import relative_error
from tests.models.decoding import check_decoding
from tests.models.foreign_llama import Foreign

BASE = LlamaConfig(301, 40, layers=3, heads=6, kv_heads=2, channels=48, hidden=88, rope_theta=500.0)
VARIANTS = {
    "grouped queries": BASE,
    "half-split": replace(BASE, rope_interleaved=False),
    "one key head": replace(BASE, kv_heads=1),
    "as many as queries": replace(BASE, kv_heads=6),
    "own head": replace(BASE, tied=False, rope_interleaved=False),
    "stretched": replace(BASE, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)),
    "biases": replace(BASE, qkv_bias=True, rope_interleaved=False, norm_eps=1e-6),
    "biases, neighbours": replace(BASE, qkv_bias=True, tied=False),
    "wide heads": replace(BASE, head_size=10),
}
B, T = 4, 33
TOLERANCE = 1e-5


@pytest.fixture(scope="session", params=("reference", "cpu"))
def backend(request):
    kernels.start(request.param)
    return request.param


@pytest.fixture
def batch():
    random = np.random.default_rng(7)
    return tuple(random.integers(0, BASE.vocab_size, (B, T), dtype=np.int32) for _ in range(2))


def make(backend, batch_size=B, recompute=0, config=BASE, precision="float32", dropout=0.0):
    """A model whose biases and norms are not 0 and 1: those hide mistakes."""
    model = Llama(config, backend, batch_size, T, recompute, precision, dropout=dropout).initialize(42)
    random = np.random.default_rng(42)
    for _, view in model.parameters.items():
        view += 0.05 * random.standard_normal(view.shape, dtype=np.float32)
    model.pack_weights()
    return model


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def pair(torch, backend, request):
    """Ours and theirs with the same parameters."""
    transformers = pytest.importorskip("transformers")
    theirs = Foreign.make(torch, transformers, request.param, 5)
    ours = Llama(request.param, backend, B, T)
    ours.parameters.flat[:] = theirs.parameters().flat
    return ours, theirs


every_variant = pytest.mark.parametrize("pair", VARIANTS.values(), ids=VARIANTS, indirect=True)


@every_variant
def test_logits_loss_and_gradients_agree_with_transformers(torch, pair, batch):
    ours, theirs = pair
    x, y = (torch.from_numpy(a).long() for a in batch)
    loss = theirs.loss(x, y, torch)
    loss.backward()
    assert relative_error(ours.logits(batch[0]), theirs.model(x).logits.detach().numpy()) < TOLERANCE
    assert ours.loss(*batch) == pytest.approx(loss.item(), rel=1e-6)
    ours.gradients.flat[:] = np.nan  # whatever was there, it is written
    assert ours.loss_and_gradients(*batch) == pytest.approx(loss.item(), rel=1e-6)
    expected = theirs.gradients()
    errors = {spec.name: relative_error(view, expected[spec.name]) for spec, view in ours.gradients.items()}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("pair", [BASE, VARIANTS["own head"], VARIANTS["biases"]], indirect=True)
def test_ten_steps_of_adamw_agree_with_transformers(torch, pair, batch):
    ours, theirs = pair
    ours_adamw = AdamW.of(ours)
    all_of_them = list(theirs.model.parameters())
    groups = [
        {"params": [p for p in all_of_them if p.dim() == dimensions], "weight_decay": decay}
        for dimensions, decay in ((2, 0.1), (1, 0.0))
    ]
    theirs_adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    x, y = (torch.from_numpy(a).long() for a in batch)
    for step in range(1, 11):
        loss = theirs.loss(x, y, torch)
        theirs_adamw.zero_grad()
        loss.backward()
        theirs_adamw.step()
        assert ours.loss_and_gradients(*batch) == pytest.approx(loss.item(), rel=TOLERANCE)
        ours_adamw.update(step, 1e-3)
    expected = theirs.parameters()
    for spec, view in ours.parameters.items():
        assert relative_error(view, expected[spec.name]) < TOLERANCE, spec.name


@pytest.mark.parametrize("recompute", [1, 2])
def test_recomputing_changes_no_bit(backend, batch, recompute):
    kept, again = make(backend), make(backend, recompute=recompute)
    assert again.memory.bytes < kept.memory.bytes
    assert again.loss_and_gradients(*batch) == kept.loss_and_gradients(*batch)
    np.testing.assert_array_equal(again.gradients.flat, kept.gradients.flat)


@pytest.mark.parametrize("tied", [True, False])
def test_two_halves_accumulated_are_the_whole_batch(backend, batch, tied):
    config = replace(BASE, tied=tied)
    whole, halves = make(backend, config=config), make(backend, batch_size=B // 2, config=config)
    loss = whole.loss_and_gradients(*batch)
    x, y = batch
    parts = [
        halves.loss_and_gradients(x[i : i + 2], y[i : i + 2], micro_steps=2, accumulate=i > 0) for i in range(0, B, 2)
    ]
    assert np.mean(parts) == pytest.approx(loss, rel=1e-6)
    for spec, view in halves.gradients.items():
        assert relative_error(view, whole.gradients[spec.name].astype(float)) < TOLERANCE, spec.name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_repeat_bit_for_bit_at_any_number_of_threads(batch, precision):
    kernels.start("cpu", precision=precision)
    results = []
    try:
        for threads in (1, 2, 1):
            cpu.set_threads(min(threads, cpu.physical_cores()))
            model = make("cpu", precision=precision, dropout=0.1)
            optimizer = AdamW.of(model)
            losses = []
            for step in range(1, 4):
                losses.append(model.loss_and_gradients(*batch, dropout_key=step))
                optimizer.update(step, 1e-3, 1 / optimizer.gradient_norm())
            results.append((losses, model.parameters.flat.tobytes()))
    finally:
        cpu.set_threads()
    assert results[0] == results[1] == results[2]


def test_bfloat16_is_near_float32(batch):
    kernels.start("cpu", precision="bfloat16")
    exact, rounded = (make("cpu", config=VARIANTS["own head"], precision=p) for p in ("float32", "bfloat16"))
    assert rounded.loss(*batch) == pytest.approx(exact.loss(*batch), rel=2e-3)
    assert rounded.loss_and_gradients(*batch) == pytest.approx(exact.loss_and_gradients(*batch), rel=2e-3)
    for spec, view in rounded.gradients.items():
        assert relative_error(view, exact.gradients[spec.name].astype(float)) < 0.03, spec.name
    again = make("cpu", config=VARIANTS["own head"], precision="bfloat16", recompute=2)
    again.loss_and_gradients(*batch)
    np.testing.assert_array_equal(again.gradients.flat, rounded.gradients.flat)
    decoder = LlamaDecoder(StoredWeights.of(exact.parameters, exact.config).converted("BF16"), precision="bfloat16")
    check_decoding(decoder, batch[0][0], exact.logits(batch[0]).astype(float)[0], 0.03)


@pytest.mark.parametrize("config", [BASE, VARIANTS["biases"], VARIANTS["own head"]])
def test_decoding_gives_the_logits_of_the_whole(backend, batch, config):
    model = make(backend, config=config)
    whole = model.logits(batch[0]).astype(float)
    check_decoding(LlamaDecoder(StoredWeights.of(model.parameters, config), backend), batch[0][0], whole[0])


def test_a_shorter_sequence_uses_the_first_positions(backend, batch):
    model = Llama(BASE, backend, 1, BASE.context)
    model.parameters.flat[:] = make(backend, None).parameters.flat
    padded = np.zeros((1, BASE.context), np.int32)
    padded[0, :T] = batch[0][0]
    assert relative_error(model.logits(padded)[0, :T], make(backend).logits(batch[0])[0].astype(float)) < TOLERANCE


def test_what_does_not_fit_is_said():
    with pytest.raises(UserError, match="sequence length of 41 is more than the model's context of 40"):
        Llama(BASE, "reference", 1, 41)
    with pytest.raises(UserError, match="recompute is 0, 1 or 2, not 3"):
        Llama(BASE, "reference", 1, recompute=3)
    with pytest.raises(UserError, match="dropout must be at least 0 and less than 1, not 1"):
        Llama(BASE, "reference", 1, dropout=1.0)
    with pytest.raises(UserError, match="GB of memory"):
        Llama(from_descriptor("llama:1.1B"), "reference", 64)
    with pytest.raises(ValueError, match=r"tokens are \(1, 40\), the model was made for \(2, 33\)"):
        Llama(BASE, "reference", 2, 33).loss(np.zeros((1, 40), np.int32), np.zeros((1, 40), np.int32))
