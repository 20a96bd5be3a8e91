"""AdamW beside PyTorch's, and clipping."""

import numpy as np
import pytest

from llmpy import kernels
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.parameters import Parameters, initialize, total_size
from llmpy.training.optimizer import AdamW, clip_scale

CONFIG = GPT2Config(vocab_size=70, context=5, layers=2, heads=1, channels=6)


@pytest.fixture(params=("reference", "cpu"))
def backend(request):
    return kernels.start(request.param)


def buffers():
    table = CONFIG.parameter_table()
    return [Parameters(table, np.zeros(total_size(table), np.float32)) for _ in range(4)]


@pytest.mark.parametrize(("beta1", "beta2", "weight_decay"), [(0.9, 0.95, 0.1), (0.9, 0.999, 0.0), (0.0, 0.5, 1.0)])
def test_ten_steps_are_pytorchs(backend, beta1, beta2, weight_decay):
    torch = pytest.importorskip("torch")
    p, g, m, v = buffers()
    initialize(p, 3)
    optimizer = AdamW(backend, p, g, m.flat, v.flat, beta1, beta2, weight_decay)
    tensors = {spec.name: torch.from_numpy(view.copy()).requires_grad_() for spec, view in p.items()}
    groups = [
        {"params": [tensors[s.name] for s in p.table if s.decay], "weight_decay": weight_decay},
        {"params": [tensors[s.name] for s in p.table if not s.decay], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(beta1, beta2), eps=1e-8)
    random = np.random.default_rng(0)
    for step in range(10):
        g.flat[:] = random.standard_normal(g.flat.size) * 10.0 ** random.integers(-4, 2, g.flat.size)
        for spec, view in g.items():
            tensors[spec.name].grad = torch.from_numpy(view.copy())
        norm = torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0).item()
        assert optimizer.gradient_norm() == pytest.approx(norm, rel=1e-5)
        optimizer.update(step + 1, 1e-2, clip_scale(optimizer.gradient_norm(), 1.0))
        theirs.step()
        for spec, view in p.items():
            expected = tensors[spec.name].detach().numpy()
            np.testing.assert_allclose(view, expected, rtol=1e-5, atol=2e-6, err_msg=f"{spec.name}, step {step}")


def test_padding_and_what_has_no_gradient_stays_zero(backend):
    p, g, m, v = buffers()
    initialize(p, 1)
    g.wpe[:] = 1
    AdamW(backend, p, g, m.flat, v.flat).update(1, 0.1)
    assert not p.wte[CONFIG.vocab_size :].any()
    assert not p.qkvb.any()


def test_gradients_are_clipped_to_the_norm_and_never_stretched():
    assert clip_scale(4.0, 1.0) == 0.25
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(1.0, 1.0) == 1.0
    assert clip_scale(100.0, 0) == 1.0
    assert clip_scale(6.0, 3.0) == 0.5
