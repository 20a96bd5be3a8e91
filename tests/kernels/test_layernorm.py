import numpy as np
import pytest

from llmpy.kernels import reference
from tests.kernels.numerics import assert_agree, compare, numerical_gradient

SHAPES = [(1, 1), (3, 5), (17, 96), (64, 768), (131, 67), (257, 129)]
FLOOR = 1e-6  # of values around 1: a mean of numbers that cancel


def forward(backend, arrays, x, w, b):
    y, mean, rstd = arrays.empty(*x.shape), arrays.empty(len(x)), arrays.empty(len(x))
    backend.layernorm_forward(y, mean, rstd, x, w, b)
    return y, mean, rstd


@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_forward_agrees_with_the_reference(backend, arrays, rows, channels):
    x, w, b = arrays.normal(rows, channels), arrays.normal(channels), arrays.normal(channels)
    y, mean, rstd = arrays.empty(rows, channels), arrays.empty(rows), arrays.empty(rows)
    compare(backend, "layernorm_forward", y, mean, rstd, x, w, b, floor=FLOOR)


@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_backward_agrees_with_the_reference_and_adds(backend, arrays, rows, channels):
    x, w, dy = arrays.normal(rows, channels), arrays.normal(channels), arrays.normal(rows, channels)
    _, mean, rstd = forward(backend, arrays, x, w, arrays.normal(channels))
    dresidual, dw, db = arrays.normal(rows, channels), arrays.normal(channels), arrays.normal(channels)
    compare(backend, "layernorm_backward", dresidual, dw, db, dy, x, w, mean, rstd, floor=FLOOR)


def test_rows_of_equal_numbers_become_the_bias(backend, arrays):
    x, b = arrays.empty(3, 40), arrays.normal(40)
    x[...] = np.array([[0.0], [-7.0], [1e4]])
    y, mean, rstd = forward(backend, arrays, x, arrays.normal(40), b)
    assert_agree(y, np.tile(b, (3, 1)), floor=1e-2)  # 1e4 is a mean of 40 roundings away from itself, at most
    assert_agree(mean, x[:, 0])
    assert_agree(rstd[:2], np.full(2, 1e-5**-0.5))


@pytest.mark.parametrize(("rows", "channels"), [(1, 2), (3, 5), (4, 17)])
def test_gradients_agree_with_differences(doubles, rows, channels):
    x, w = doubles.normal(rows, channels), doubles.normal(channels)
    b, dy = doubles.normal(channels), doubles.normal(rows, channels)

    def loss():
        return (forward(reference, doubles, x, w, b)[0] * dy).sum()

    _, mean, rstd = forward(reference, doubles, x, w, b)
    begun = [doubles.normal(*a.shape) for a in (x, w, b)]
    gradients = [a.copy() for a in begun]
    reference.layernorm_backward(*gradients, dy, x, w, mean, rstd)
    for gradient, start, a in zip(gradients, begun, (x, w, b), strict=True):
        assert_agree(gradient - start, numerical_gradient(loss, a), 1e-6)
