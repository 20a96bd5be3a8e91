"""A GPT-2 with a head of its own beside the GPT2LMHeadModel of `transformers`, through a Hugging Face folder."""

import numpy as np
import pytest

from llmpy import UserError, kernels
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.llmc import model as llmc
from llmpy.models.gpt2 import GPT2, GPT2Config, GPT2Decoder
from llmpy.training.optimizer import AdamW
from tests.kernels.numerics import relative_error
from tests.models.decoding import check_decoding

CONFIG = GPT2Config(vocab_size=301, context=40, layers=2, heads=4, channels=48, tied=False)
B, T = 2, 33
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=("reference", "cpu"))
def backend(request):
    kernels.start(request.param)
    return request.param


@pytest.fixture
def batch():
    random = np.random.default_rng(7)
    return tuple(random.integers(0, CONFIG.vocab_size, (B, T), dtype=np.int32) for _ in range(2))


@pytest.fixture
def model(backend):
    model = GPT2(CONFIG, backend, B, T).initialize()
    random = np.random.default_rng(5)
    for spec, view in model.parameters.items():
        view[: spec.rows] += 0.05 * random.standard_normal(view[: spec.rows].shape, dtype=np.float32)
    return model


def test_logits_gradients_and_steps_agree_with_transformers(model, batch, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    huggingface.write_model(tmp_path / "before", CONFIG, model.parameters)
    theirs, loading = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "before", output_loading_info=True)
    assert not any(loading.values()), loading
    theirs = theirs.double().eval()
    assert theirs.lm_head.weight is not theirs.transformer.wte.weight
    x, y = (torch.from_numpy(a).long() for a in batch)

    logits = theirs(x).logits
    assert relative_error(model.logits(batch[0]), logits.detach().numpy()) < TOLERANCE
    model.gradients.flat[:] = np.nan
    model.gradients.wte[CONFIG.vocab_size :] = 0
    ours, matrices, vectors = AdamW.of(model), *([p for p in theirs.parameters() if p.dim() == d] for d in (2, 1))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for step in range(1, 11):
        loss = torch.nn.functional.cross_entropy(theirs(x).logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        assert model.loss_and_gradients(*batch) == pytest.approx(loss.item(), rel=TOLERANCE)
        if step == 1:
            for ours_, their in (
                (model.gradients.lm_headw, theirs.lm_head),
                (model.gradients.wte[: CONFIG.vocab_size], theirs.transformer.wte),
                (model.gradients.wpe, theirs.transformer.wpe),
            ):
                assert relative_error(ours_, their.weight.grad.numpy()) < TOLERANCE
        optimizer.step()
        ours.update(step, 1e-3)
    theirs.float().save_pretrained(tmp_path / "after")
    config, parameters = huggingface.read_model(tmp_path / "after")
    assert config == CONFIG
    C = CONFIG.channels
    for each in (model.parameters, parameters):  # the bias of k shifts all scores of a query: its gradient is noise
        each.qkvb[:, C : 2 * C] = 0
    for spec, view in model.parameters.items():
        assert relative_error(view, parameters[spec.name]) < TOLERANCE, spec.name


def test_a_folder_that_comes_back_generates(model, backend, batch, tmp_path):
    huggingface.write_model(tmp_path, CONFIG, model.parameters)
    decoder = GPT2Decoder(huggingface.read_stored(tmp_path), backend)
    check_decoding(decoder, batch[0][0], model.logits(batch[0])[0])


def test_the_format_of_llmc_refuses_it(model, tmp_path):
    with pytest.raises(UserError, match=r"llm\.c's format has no head of its own"):
        llmc.write_model(tmp_path / "model.bin", CONFIG, model.parameters)
