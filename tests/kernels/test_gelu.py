import numpy as np
import pytest

from llmpy.kernels import reference
from tests.kernels.numerics import assert_agree, compare, numerical_gradient

SHAPES = [(1,), (3, 5), (17, 96), (2, 7, 131), (16385,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_agrees_with_the_reference(backend, arrays, shape):
    compare(backend, "gelu_forward", arrays.empty(*shape), arrays.normal(*shape, scale=2))
    x = arrays.normal(*shape)
    compare(backend, "gelu_forward", x, x)


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_agrees_with_the_reference(backend, arrays, shape):
    x, dy = arrays.normal(*shape, scale=2), arrays.normal(*shape)
    compare(backend, "gelu_backward", arrays.empty(*shape), dy, x)
    compare(backend, "gelu_backward", dy, dy, x)


def test_every_range_of_the_curve(backend, arrays):
    """Number by number, not by the norm: the tails are small and must be right too."""
    x, y, dx = arrays.empty(4001), arrays.empty(4001), arrays.empty(4001)
    x[:] = np.linspace(-12, 12, 4001)
    expected, slope = x.astype(float), np.ones(4001)
    reference.gelu_forward(expected, x.astype(float))
    reference.gelu_backward(slope, slope, x.astype(float))
    backend.gelu_forward(y, x)
    backend.gelu_backward(dx, np.ones_like(x), x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, slope, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_far_out_it_is_the_identity_or_nothing(backend, arrays, size):
    x, y, dx, dy = (arrays.empty(2) for _ in range(4))
    x[:], dy[:] = (size, -size), 1
    backend.gelu_forward(y, x)
    backend.gelu_backward(dx, dy, x)
    np.testing.assert_allclose(y, [size, 0], atol=1e-30)
    np.testing.assert_allclose(dx, [1, 0], atol=1e-6)


def test_gradient_agrees_with_differences(doubles):
    x, dy, y, dx = (doubles.normal(5, 7, scale=2) for _ in range(4))

    def loss():
        reference.gelu_forward(y, x)
        return (y * dy).sum()

    reference.gelu_backward(dx, dy, x)
    assert_agree(dx, numerical_gradient(loss, x), 1e-6)
