import numpy as np
import pytest

from tests.kernels.numerics import Arrays, assert_agree, compare

SIZES = (1, 5, 96, 4097, 131077)
RECIPE = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_a_step_agrees_with_the_reference(backend, arrays, n, step):
    p, g, m, v = arrays.normal(n), arrays.normal(n), arrays.normal(n), np.square(arrays.normal(n))
    compare(backend, "adamw", p, g, m, v, *RECIPE.values(), step, 0.25)


def test_ten_steps_agree_with_pytorch(backend, arrays):
    torch = pytest.importorskip("torch")
    p, m, v = arrays.normal(1001), np.zeros(1001, np.float32), np.zeros(1001, np.float32)
    theirs = torch.nn.Parameter(torch.tensor(p.astype(np.float64)))
    optimizer = torch.optim.AdamW([theirs], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(1, 11):
        g = arrays.normal(1001, scale=10.0 ** (step % 3))
        theirs.grad = torch.tensor(g.astype(np.float64))
        optimizer.step()
        backend.adamw(p, g, m, v, *RECIPE.values(), step, 1.0)
        assert_agree(p, theirs.detach().numpy(), 1e-6)


def test_no_gradient_and_no_decay_change_nothing(backend, arrays):
    p, zeros = arrays.normal(77), [np.zeros(77, np.float32) for _ in range(3)]
    before = p.copy()
    backend.adamw(p, *zeros, 1e-3, 0.9, 0.999, 1e-8, 0.0, 1, 1.0)
    np.testing.assert_array_equal(p, before)


@pytest.mark.parametrize("size", [1e-18, 1.0, 1e15])
def test_the_size_of_the_gradient_does_not_matter_to_a_first_step(backend, arrays, size):
    p, g, m, v = arrays.normal(99), arrays.normal(99, scale=size), np.zeros(99, np.float32), np.zeros(99, np.float32)
    expected = p.astype(float) - 1e-3 * np.sign(g)
    backend.adamw(p, g, m, v, 1e-3, 0.9, 0.999, 1e-24, 0.0, 1, 1.0)
    assert_agree(p, expected, 1e-6)


@pytest.mark.parametrize("n", SIZES)
def test_the_norm_agrees_with_numpy(backend, arrays, n):
    g = arrays.normal(n, scale=3.0)
    assert backend.global_norm(g) == pytest.approx(np.linalg.norm(g.astype(float)), rel=1e-12)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_squares_of_a_gradient_may_leave_float32(backend, size):
    g = Arrays().normal(500, scale=size)
    assert backend.global_norm(g) == pytest.approx(np.linalg.norm(g.astype(float)), rel=1e-12)
