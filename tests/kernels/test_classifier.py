import numpy as np
import pytest

from llmpy.kernels import reference
from tests.kernels.numerics import assert_agree, compare, numerical_gradient

SHAPES = [
    (1, 1, 2, 1),
    (3, 5, 7, 2),
    (17, 96, 301, 17),
    (65, 64, 131, 16),
    (40, 33, 1009, 7),
]  # N, C, V, rows of logits


def targets_of(arrays, V, N):
    """Any target, the first and the last among them, and where there is room some that count for nothing."""
    targets = arrays.tokens(V, N)
    targets[0] = V - 1
    targets[-1] = 0 if N > 1 else targets[-1]
    targets[1:-1:5] = -1
    return targets


@pytest.mark.parametrize(("N", "C", "V", "R"), SHAPES)
def test_forward_agrees_with_the_reference(backend, arrays, N, C, V, R):
    x, w, targets, logits = arrays.normal(N, C), arrays.normal(V, C), targets_of(arrays, V, N), arrays.empty(R, V)
    compare(backend, "classifier_forward", arrays.empty(N), x, w, targets, logits, scratch=logits, floor=1e-6)


@pytest.mark.parametrize(("N", "C", "V", "R"), SHAPES)
@pytest.mark.parametrize("accumulate", [True, False])
def test_backward_agrees_with_the_reference(backend, arrays, N, C, V, R, accumulate):
    x, w, targets, logits = arrays.normal(N, C), arrays.normal(V, C), targets_of(arrays, V, N), arrays.empty(R, V)
    dw = arrays.normal(V, C) if accumulate else arrays.empty(V, C)
    arguments = (arrays.empty(N), arrays.empty(N, C), dw, x, w, targets, 0.7, logits)
    compare(backend, "classifier_backward", *arguments, accumulate=accumulate, scratch=logits, floor=2e-6)


def test_the_rows_of_logits_at_a_time_do_not_matter(backend, arrays):
    x, w, targets = arrays.normal(30, 16), arrays.normal(50, 16), arrays.tokens(50, 30)
    whole, parts = arrays.empty(30), arrays.empty(30)
    backend.classifier_forward(whole, x, w, targets, arrays.empty(30, 50))
    backend.classifier_forward(parts, x, w, targets, arrays.empty(8, 50))
    assert_agree(parts, whole.astype(float), 1e-6)


def test_a_batch_without_targets_costs_nothing(backend, arrays):
    x, w, targets, logits = arrays.normal(5, 8), arrays.normal(11, 8), np.full(5, -1, np.int32), arrays.empty(5, 11)
    losses, dx, dw = arrays.empty(5), arrays.empty(5, 8), arrays.empty(11, 8)
    backend.classifier_backward(losses, dx, dw, x, w, targets, 1.0, logits, accumulate=False)
    assert not losses.any()
    assert not dx.any()
    assert not dw.any()


@pytest.mark.parametrize("size", [50.0, 1e4])
def test_large_logits_do_not_overflow(backend, arrays, size):
    """Logits that exp cannot take: the loss is their difference to the largest, the gradient all but one-hot."""
    x, w = arrays.empty(9, 4), arrays.empty(33, 4)
    x[...], w[...] = np.rint(arrays.normal(9, 4) * 8) / 8 * size, np.rint(arrays.normal(33, 4) * 8) / 8
    losses, dx, dw, logits = arrays.empty(9), arrays.empty(9, 4), arrays.normal(33, 4), arrays.empty(4, 33)
    arguments = (losses, dx, dw, x, w, arrays.tokens(33, 9), 1 / 9, logits)
    compare(backend, "classifier_backward", *arguments, scratch=logits, tolerance=1e-4, floor=1e-6 * size)


def test_gradients_agree_with_differences(doubles):
    N, C, V, R, scale = 5, 3, 7, 2, 0.3
    x, w, targets = doubles.normal(N, C), doubles.normal(V, C), np.array([0, 6, -1, 3, 3], np.int32)
    losses, logits = doubles.empty(N), doubles.empty(R, V)

    def loss():
        reference.classifier_forward(losses, x, w, targets, logits)
        return losses.sum() * scale

    dx, dw = doubles.empty(N, C), doubles.normal(V, C)
    before = dw.copy()
    reference.classifier_backward(losses, dx, dw, x, w, targets, scale, logits)
    assert_agree(losses.sum(keepdims=True) * scale, np.array([loss()]), 1e-12)
    assert_agree(dx, numerical_gradient(loss, x), 1e-6)
    assert_agree(dw - before, numerical_gradient(loss, w), 1e-6)
    assert losses[2] == 0
    assert not dx[2].any()
