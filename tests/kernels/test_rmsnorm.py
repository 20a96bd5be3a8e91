import numpy as np
import pytest

from llmpy.kernels import reference
from tests.kernels.numerics import assert_agree, compare, numerical_gradient

SHAPES = [(1, 1), (3, 5), (17, 96), (64, 768), (131, 67), (257, 129)]
FLOOR = 1e-6  # of values around 1: a mean of numbers that cancel


def forward(backend, arrays, x, w, eps=1e-5):
    y, rstd = arrays.empty(*x.shape), arrays.empty(len(x))
    backend.rmsnorm_forward(y, rstd, x, w, eps)
    return y, rstd


@pytest.mark.parametrize(("rows", "channels"), SHAPES)
@pytest.mark.parametrize("eps", [1e-5, 1e-6, 0.5])
def test_forward_agrees_with_the_reference(backend, arrays, rows, channels, eps):
    x, w = arrays.normal(rows, channels), arrays.normal(channels)
    compare(backend, "rmsnorm_forward", arrays.empty(rows, channels), arrays.empty(rows), x, w, eps)


@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_backward_agrees_with_the_reference_and_adds(backend, arrays, rows, channels):
    x, w, dy = arrays.normal(rows, channels), arrays.normal(channels), arrays.normal(rows, channels)
    _, rstd = forward(backend, arrays, x, w)
    dresidual, dw = arrays.normal(rows, channels), arrays.normal(channels)
    compare(backend, "rmsnorm_backward", dresidual, dw, dy, x, w, rstd, floor=FLOOR)


def test_a_row_of_zeros_stays_zero(backend, arrays):
    y, rstd = forward(backend, arrays, np.zeros((2, 40), np.float32), arrays.normal(40))
    assert not y.any()
    assert_agree(rstd, np.full(2, 1e-5**-0.5))


@pytest.mark.parametrize(("rows", "channels"), [(1, 2), (3, 5), (4, 17)])
def test_gradients_agree_with_differences(doubles, rows, channels):
    x, w, dy = doubles.normal(rows, channels), doubles.normal(channels), doubles.normal(rows, channels)

    def loss():
        return (forward(reference, doubles, x, w)[0] * dy).sum()

    _, rstd = forward(reference, doubles, x, w)
    dresidual, dw = doubles.normal(rows, channels), doubles.normal(channels)
    before = dresidual.copy(), dw.copy()
    reference.rmsnorm_backward(dresidual, dw, dy, x, w, rstd)
    assert_agree(dresidual - before[0], numerical_gradient(loss, x), 1e-6)
    assert_agree(dw - before[1], numerical_gradient(loss, w), 1e-6)
