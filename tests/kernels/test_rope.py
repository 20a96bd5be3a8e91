import numpy as np
import pytest

from llmpy.kernels import reference
from tests.kernels.numerics import assert_agree, compare, numerical_gradient

SHAPES = [(1, 1, 1, 1, 2), (2, 3, 4, 2, 6), (3, 17, 3, 1, 48), (1, 65, 6, 3, 64), (2, 33, 5, 5, 34)]  # B T NH NKV hs


def angles(arrays, positions, hs):
    """cos and sin [positions, hs/2] of arbitrary angles."""
    cos, sin, angle = (
        arrays.empty(positions, hs // 2),
        arrays.empty(positions, hs // 2),
        arrays.normal(positions, hs // 2),
    )
    cos[:], sin[:] = np.cos(angle), np.sin(angle)
    return cos, sin


@pytest.mark.parametrize("operation", ["rope_forward", "rope_backward"])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("B", "T", "NH", "NKV", "hs"), SHAPES)
def test_both_directions_agree_with_the_reference(backend, arrays, operation, B, T, NH, NKV, hs, interleaved):
    cos, sin = angles(arrays, T + 7, hs)
    for x in arrays.qkv(B, T, NH, NKV, hs):  # views of one buffer, whose guarded borders stay what they are
        compare(backend, operation, x, cos, sin, interleaved)
    positions = np.arange(B, dtype=np.int32)[::-1].copy() * 3
    compare(backend, operation, arrays.normal(B, T, NH, hs), cos, sin, interleaved, positions)


def test_what_lies_between_the_heads_is_left_alone(backend, arrays):
    q, k, v = arrays.qkv(2, 5, 4, 2, 6)
    before = [x.copy() for x in (q, v)]
    backend.rope_forward(k, *angles(arrays, 5, 6))
    np.testing.assert_array_equal(q, before[0])
    np.testing.assert_array_equal(v, before[1])


@pytest.mark.parametrize("interleaved", [True, False])
def test_backward_undoes_forward(backend, arrays, interleaved):
    x, (cos, sin) = arrays.normal(2, 9, 3, 10), angles(arrays, 9, 10)
    before = x.astype(float)
    backend.rope_forward(x, cos, sin, interleaved)
    backend.rope_backward(x, cos, sin, interleaved)
    assert_agree(x, before)


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_product_depends_on_the_distance_alone(doubles, interleaved):
    hs, T = 8, 12
    angle = np.arange(T)[:, None] * np.array([1.0, 0.3, 0.1, 0.01])
    q, k = (np.tile(doubles.normal(1, 1, 1, hs), (1, T, 1, 1)) for _ in range(2))
    for x in (q, k):
        reference.rope_forward(x, np.cos(angle), np.sin(angle), interleaved)
    scores = q[0, :, 0] @ k[0, :, 0].T
    for distance in range(T):
        np.testing.assert_allclose(np.diag(scores, -distance), scores[distance, 0])


def test_pairs_are_neighbours_or_half_a_head_apart():
    quarter_turn = np.zeros((1, 2)), np.ones((1, 2))
    for interleaved, expected in ((True, [-2.0, 1.0, -4.0, 3.0]), (False, [-3.0, -4.0, 1.0, 2.0])):
        x = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
        reference.rope_forward(x, *quarter_turn, interleaved)
        np.testing.assert_array_equal(x.reshape(-1), expected)


@pytest.mark.parametrize("interleaved", [True, False])
def test_gradient_agrees_with_differences(doubles, interleaved):
    x, dy, positions = doubles.normal(2, 3, 2, 4), doubles.normal(2, 3, 2, 4), np.array([4, 1], np.int32)
    cos, sin = angles(doubles, 7, 4)

    def loss():
        y = x.copy()
        reference.rope_forward(y, cos, sin, interleaved, positions)
        return (y * dy).sum()

    dx = dy.copy()
    reference.rope_backward(dx, cos, sin, interleaved, positions)
    assert_agree(dx, numerical_gradient(loss, x), 1e-6)
