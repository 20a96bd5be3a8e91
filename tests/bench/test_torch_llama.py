"""The Llama in PyTorch that ours is measured against computes what ours does."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from llmpy.bench import train
from llmpy.models.config import RopeScaling
from llmpy.models.llama import Llama, LlamaConfig
from llmpy.models.registry import config_from_dict
from llmpy.training.optimizer import AdamW
from tests.kernels.numerics import relative_error

torch = pytest.importorskip("torch")

from llmpy.bench.torch_peer.llama import TorchLlama  # noqa: E402  (where there is PyTorch)

GROUPED = LlamaConfig(61, 20, layers=2, heads=4, kv_heads=2, channels=24, hidden=40, tied=False, qkv_bias=True)
SHAPES = [
    LlamaConfig(61, 20, layers=2, heads=3, channels=24),
    GROUPED,
    replace(GROUPED, rope_interleaved=False, rope_scaling=RopeScaling(original_context=32)),
]
B, T = 2, 17


@pytest.fixture(autouse=True)
def _threads():
    """PyTorch's number of threads is afterwards what it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("config", SHAPES)
def test_loss_gradients_and_steps_agree(config):
    model = Llama(config, "reference", B, T).initialize(42)
    random = np.random.default_rng(1)
    model.parameters.flat[:] += 0.05 * random.standard_normal(model.parameters.flat.shape, dtype=np.float32)
    theirs = TorchLlama(config).load(model.parameters)
    x, y = (random.integers(0, config.vocab_size, (B, T), dtype=np.int32) for _ in range(2))
    tensors = [torch.from_numpy(a).long() for a in (x, y)]
    ours, optimizer = AdamW.of(model), theirs.adamw(1e-3)
    assert relative_error(model.logits(x), theirs.logits(tensors[0]).detach().numpy()) < 1e-5
    for step in range(1, 4):
        loss = theirs(*tensors)
        optimizer.zero_grad()
        loss.backward()
        assert model.loss_and_gradients(x, y) == pytest.approx(loss.item(), rel=1e-5)
        for spec, view in model.gradients.items():
            assert relative_error(view, theirs.stacked(spec, gradients=True)) < 1e-4, spec.name
        ours.update(step, 1e-3)
        optimizer.step()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_of_each_begins_with_the_same_loss(precision):
    step = asdict(train.Step(SHAPES[1], B, T, 1, precision=precision))
    ours, theirs = train.our_step(step), train.pytorch_step(step, compiled=False)
    assert ours() == pytest.approx(theirs(), rel=0.02)  # of other random values
    assert ours() < np.log(61) + 0.1


@pytest.mark.parametrize("config", SHAPES)
def test_a_shape_comes_back_from_json(config):
    assert config_from_dict(asdict(config)) == config
