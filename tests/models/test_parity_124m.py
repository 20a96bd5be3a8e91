"""GPT-2 124M at full size, random weights, beside PyTorch and transformers in float32: about a minute and 7 GB."""

import numpy as np
import pytest

from llmpy import kernels
from llmpy.formats.huggingface.folder import write_model
from llmpy.formats.tensor_map import parts
from llmpy.models.gpt2 import GPT2
from llmpy.models.presets import from_descriptor
from llmpy.training.optimizer import AdamW
from llmpy.utils.system_memory import available_memory
from tests.kernels.numerics import relative_error

B, T = 4, 64
TOLERANCE = 1e-4
LR = 1e-4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif((available_memory() or 0) < 8e9, reason="takes 8 GB of free memory"),
]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(torch):
    kernels.start("cpu")
    return GPT2(from_descriptor("d12"), "cpu", B, T)


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(7)
    return tuple(random.integers(0, 50257, (B, T), dtype=np.int32) for _ in range(2))


@pytest.fixture(scope="module")
def as_tensors(torch, batch):
    return tuple(torch.from_numpy(a).long() for a in batch)


def test_transformers_opens_our_folder_and_agrees(torch, model, batch, as_tensors, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    model.initialize(42)
    random = np.random.default_rng(42)
    for spec, view in model.parameters.items():
        if not spec.decay:  # biases of 0 and norms of 1 would hide mistakes
            view += 0.02 * random.standard_normal(view.shape, dtype=np.float32)
    folder = tmp_path_factory.mktemp("gpt2")
    write_model(folder, model.config, model.parameters)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()  # eval: without dropout
    (folder / "model.safetensors").unlink()
    x, y = as_tensors
    logits = theirs(x).logits
    assert relative_error(model.logits(batch[0]), logits.detach().numpy()) < TOLERANCE
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    assert model.loss(*batch) == pytest.approx(loss.item(), abs=TOLERANCE)
    loss.backward()
    assert model.loss_and_gradients(*batch) == pytest.approx(loss.item(), abs=TOLERANCE)
    gradients = dict(theirs.transformer.named_parameters())
    for part in parts(model.config):
        error = relative_error(part.of(model.gradients), gradients[part.huggingface].grad.numpy())
        assert error < TOLERANCE, part.huggingface


def test_gradients_and_ten_steps_agree_with_pytorch(torch, model, batch, as_tensors):
    from llmpy.bench.torch_peer.gpt2 import TorchGPT2

    theirs = TorchGPT2(model.config).load(model.initialize(42).parameters)
    optimizer = theirs.adamw(LR, fused=False)
    ours = AdamW(model.kernels, model.parameters, model.gradients, model.arrays["m"], model.arrays["v"])
    losses = []
    for step in range(1, 11):
        loss = theirs(*as_tensors)
        optimizer.zero_grad()
        loss.backward()
        losses.append((model.loss_and_gradients(*batch), loss.item()))
        if step == 1:
            for spec, view in model.gradients.items():
                assert relative_error(view[: spec.rows], theirs.stacked(spec, gradients=True)) < TOLERANCE, spec.name
        optimizer.step()
        ours.update(step, LR)
    assert max(abs(ours - theirs) for ours, theirs in losses) < TOLERANCE, losses
    assert losses[-1][0] < losses[0][0] - 1, "and it learns"
