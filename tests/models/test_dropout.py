"""Dropout in both families: the same mask forward, backward and again; none where a model is judged."""

import numpy as np
import pytest

from llmpy import kernels
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.llama import LlamaConfig
from llmpy.models.registry import new_model

CONFIGS = (
    GPT2Config(301, 40, layers=3, heads=4, channels=48),
    LlamaConfig(301, 40, layers=3, heads=6, kv_heads=2, channels=48, hidden=88),
)
B, T, KEY = 4, 33, 2**63 + 11


@pytest.fixture(scope="session", params=("reference", "cpu"))
def backend(request):
    kernels.start(request.param)
    return request.param


@pytest.fixture(params=CONFIGS, ids=["gpt2", "llama"])
def make(request, backend):
    def make(recompute=0):
        model = new_model(request.param, backend, B, T, recompute, dropout=0.3).initialize()
        model.parameters.flat += 0.05 * np.random.default_rng(1).standard_normal(model.parameters.flat.size)
        return model

    return make


@pytest.fixture
def batch():
    random = np.random.default_rng(7)
    return tuple(random.integers(0, 301, (B, T), dtype=np.int32) for _ in range(2))


@pytest.mark.parametrize("recompute", [1, 2])
def test_recomputing_changes_no_bit(make, batch, recompute):
    kept, again = make(), make(recompute)
    assert again.loss_and_gradients(*batch, dropout_key=KEY) == kept.loss_and_gradients(*batch, dropout_key=KEY)
    np.testing.assert_array_equal(again.gradients.flat, kept.gradients.flat)


def test_gradients_agree_with_differences(make, batch):
    """Along the gradient itself, so that the difference is well above float32's rounding."""
    model = make()
    loss = model.loss_and_gradients(*batch, dropout_key=KEY)
    gradient = model.gradients.flat.copy()
    assert loss != model.loss(*batch), "evaluation drops nothing"
    assert loss != model.loss_and_gradients(*batch, dropout_key=KEY + 1)
    direction, step = gradient / np.linalg.norm(gradient), np.float32(1e-2)
    model.parameters.flat += step * direction
    above = model.loss_and_gradients(*batch, dropout_key=KEY)
    model.parameters.flat -= 2 * step * direction
    below = model.loss_and_gradients(*batch, dropout_key=KEY)
    assert (above - below) / (2 * step) == pytest.approx(np.linalg.norm(gradient), rel=2e-3)
