import numpy as np
import pytest

from llmpy.kernels import reference
from tests.kernels.numerics import assert_agree, compare, numerical_gradient

SHAPES = [(1, 1), (3, 5), (17, 172), (64, 67), (5, 1376)]


@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
def test_forward_agrees_with_the_reference(backend, arrays, rows, hidden):
    compare(backend, "swiglu_forward", arrays.empty(rows, hidden), arrays.normal(rows, 2 * hidden, scale=2))


@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
def test_backward_agrees_with_the_reference(backend, arrays, rows, hidden):
    gateup, dy = arrays.normal(rows, 2 * hidden, scale=2), arrays.normal(rows, hidden)
    compare(backend, "swiglu_backward", arrays.empty(rows, 2 * hidden), arrays.empty(rows, hidden), dy, gateup)
    compare(backend, "swiglu_backward", gateup, dy, dy, gateup)  # over what it reads


def test_far_out_it_is_a_product_or_nothing(backend, arrays):
    gateup, y, dgateup = np.float32([[1e4, 3], [-1e4, 3]]), arrays.empty(2, 1), arrays.empty(2, 2)
    backend.swiglu_forward(y, gateup)
    np.testing.assert_allclose(y, [[3e4], [0]], atol=1e-30)
    backend.swiglu_backward(dgateup, y, np.ones((2, 1), np.float32), gateup)
    np.testing.assert_allclose(dgateup, [[3, 1e4], [0, 0]], atol=1e-6)


def test_gradient_agrees_with_differences(doubles):
    gateup, dy, y = doubles.normal(4, 10, scale=2), doubles.normal(4, 5), doubles.empty(4, 5)

    def loss():
        reference.swiglu_forward(y, gateup)
        return (y * dy).sum()

    expected, dgateup, again = numerical_gradient(loss, gateup), doubles.empty(4, 10), doubles.empty(4, 5)
    reference.swiglu_backward(dgateup, again, dy, gateup)
    assert_agree(dgateup, expected, 1e-6)
    loss()
    np.testing.assert_array_equal(again, y)
