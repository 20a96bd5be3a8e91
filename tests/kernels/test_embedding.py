import numpy as np
import pytest

from llmpy.kernels import reference
from tests.kernels.numerics import assert_agree, compare, numerical_gradient

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 17, 96, 11), (2, 64, 131, 301)]  # B, T, C, V


@pytest.mark.parametrize(("B", "T", "C", "V"), SHAPES)
@pytest.mark.parametrize("start", [0, 3])
def test_forward_agrees_with_the_reference(backend, arrays, B, T, C, V, start):
    wte, wpe = arrays.normal(V, C), arrays.normal(T + 5, C)
    compare(backend, "embedding_forward", arrays.empty(B, T, C), arrays.tokens(V, B, T), wte, wpe, start)
    compare(backend, "embedding_forward", arrays.empty(B, T, C), arrays.tokens(V, B, T), wte)


@pytest.mark.parametrize(("B", "T", "C", "V"), SHAPES)
def test_backward_agrees_with_the_reference_and_adds(backend, arrays, B, T, C, V):
    tokens = arrays.tokens(min(V, 7), B, T)  # few tokens, so that they come again and again
    compare(backend, "embedding_backward", arrays.normal(V, C), arrays.normal(T + 5, C), arrays.normal(B, T, C), tokens)
    compare(backend, "embedding_backward", arrays.normal(V, C), None, arrays.normal(B, T, C), tokens)


def test_the_first_and_the_last_token_are_found(backend, arrays):
    wte, wpe, x = arrays.normal(9, 3), arrays.normal(2, 3), arrays.empty(1, 2, 3)
    backend.embedding_forward(x, np.array([[0, 8]], np.int32), wte, wpe)
    np.testing.assert_array_equal(x[0], wte[[0, 8]] + wpe)


def test_gradients_agree_with_differences(doubles):
    tokens = np.array([[0, 2, 2], [3, 0, 2]], np.int32)
    wte, wpe, dy, x = doubles.normal(5, 4), doubles.normal(6, 4), doubles.normal(2, 3, 4), doubles.empty(2, 3, 4)

    def loss():
        reference.embedding_forward(x, tokens, wte, wpe)
        return (x * dy).sum()

    dwte, dwpe = doubles.normal(5, 4), doubles.normal(6, 4)
    before = dwte.copy(), dwpe.copy()
    reference.embedding_backward(dwte, dwpe, dy, tokens)
    assert_agree(dwte - before[0], numerical_gradient(loss, wte), 1e-6)
    assert_agree(dwpe - before[1], numerical_gradient(loss, wpe), 1e-6)
