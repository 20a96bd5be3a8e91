import os

import numpy as np
import pytest

from llmpy.kernels import reference
from tests.kernels.numerics import assert_agree, compare, numerical_gradient
from tests.kernels.on_device import OnDevice

TIMES = (1, 2, 7, 64, 129, 300)
HEAD_SIZES = (1, 8, 16, 40, 64, 80, 96, 128)
SHAPES = [(1, T, 2, 2, hs) for T in TIMES for hs in HEAD_SIZES] + [  # B, T, NH, NKV, hs
    (2, 65, 4, 1, 24),
    (3, 37, 6, 2, 16),
    (2, 130, 5, 5, 33),
    (1, 1025, 1, 1, 64),
]
LATER = [  # B, Tq, T, NH, NKV, hs: queries of the last tokens alone
    (1, 1, 1, 1, 1, 8), (1, 1, 2, 2, 1, 16), (1, 1, 130, 4, 2, 40), (2, 3, 65, 3, 3, 33), (1, 17, 49, 2, 2, 64),
    (3, 48, 95, 2, 1, 24), (1, 65, 300, 6, 2, 16), (2, 100, 1027, 1, 1, 48), (1, 299, 300, 2, 2, 128),
]  # fmt: skip
FLOOR = 2e-6  # of values around 1: the scores' gradients are differences that cancel, to zero where there is one key


def forward(backend, arrays, q, k, v):
    B, T, NH, hs = q.shape
    y, lse = arrays.empty(B, T, NH, hs), arrays.empty(B, NH, T)
    backend.attention_forward(y, lse, q, k, v)
    return y, lse


@pytest.mark.parametrize(("B", "T", "NH", "NKV", "hs"), SHAPES)
def test_forward_agrees_with_the_reference(backend, arrays, B, T, NH, NKV, hs):
    compare(
        backend, "attention_forward", arrays.empty(B, T, NH, hs), arrays.empty(B, NH, T), *arrays.qkv(B, T, NH, NKV, hs)
    )


@pytest.mark.parametrize(("B", "Tq", "T", "NH", "NKV", "hs"), LATER)
def test_queries_of_the_last_tokens_agree_with_the_reference(backend, arrays, B, Tq, T, NH, NKV, hs):
    q, caches = arrays.qkv(B, Tq, NH, NKV, hs)[0], [arrays.normal(B, T + 9, NKV, hs)[:, :T] for _ in range(2)]
    compare(backend, "attention_forward", arrays.empty(B, Tq, NH, hs), arrays.empty(B, NH, Tq), q, *caches)


def test_a_text_read_in_parts_is_the_text_read_at_once_bit_for_bit(backend, arrays):
    q, k, v = arrays.qkv(1, 301, 4, 2, 40)
    y, lse = forward(backend, arrays, q, k, v)
    by_numpy = backend is reference or (isinstance(backend, OnDevice) and "TRITON_INTERPRET" in os.environ)
    for start, end in ((0, 7), (7, 120), (120, 121), (121, 301)):
        part, part_lse = arrays.empty(1, end - start, 4, 40), arrays.empty(1, 4, end - start)
        backend.attention_forward(part, part_lse, q[:, start:end], k[:, :end], v[:, :end])
        if by_numpy:  # it adds up in another order where there are other shapes, or the rows lie elsewhere
            assert_agree(part, y[:, start:end].astype(float))
        else:
            np.testing.assert_array_equal(part, y[:, start:end])
            np.testing.assert_array_equal(part_lse, lse[:, :, start:end])


@pytest.mark.parametrize(("B", "T", "NH", "NKV", "hs"), SHAPES)
def test_backward_in_place_agrees_with_the_reference(backend, arrays, B, T, NH, NKV, hs):
    q, k, v = arrays.qkv(B, T, NH, NKV, hs)
    y, lse = forward(backend, arrays, q, k, v)
    compare(backend, "attention_backward", q, k, v, arrays.normal(B, T, NH, hs), q, k, v, y, lse, floor=FLOOR)


@pytest.mark.parametrize(("NH", "NKV"), [(3, 3), (6, 2)])
def test_backward_into_other_arrays_leaves_its_inputs_alone(backend, arrays, NH, NKV):
    B, T, hs = 2, 70, 20
    q, k, v = arrays.normal(B, T, NH, hs), arrays.normal(B, T, NKV, hs), arrays.normal(B, T, NKV, hs)
    y, lse = forward(backend, arrays, q, k, v)
    dq, dk, dv = arrays.qkv(B, T, NH, NKV, hs)  # inputs contiguous, gradients not: each may have strides of its own
    compare(backend, "attention_backward", dq, dk, dv, arrays.normal(B, T, NH, hs), q, k, v, y, lse, floor=FLOOR)


def test_the_past_does_not_see_the_future(backend, arrays):
    q, k, v = arrays.qkv(1, 150, 2, 2, 32)
    y, lse = forward(backend, arrays, q, k, v)
    for x in (q, k, v):
        x[:, 100:] = 7
    again, lse_again = forward(backend, arrays, q, k, v)
    np.testing.assert_array_equal(y[:, :100], again[:, :100])
    np.testing.assert_array_equal(lse[:, :, :100], lse_again[:, :, :100])


@pytest.mark.parametrize("size", [30.0, 1e3, 1e5])
def test_large_scores_do_not_overflow(backend, arrays, size):
    """The softmax is all but one-hot; exp of a score alone would be infinite, of its negative zero."""
    q, k, v = arrays.qkv(1, 70, 2, 2, 16)
    q[:] = np.rint(q * 4) / 4 * size  # few bits, so that float32 has the scores exactly and a tie is a tie in both
    k[:] = np.rint(k * 4) / 4
    y, lse = arrays.empty(*q.shape), arrays.empty(1, 2, 70)
    # a log-sum-exp of that size has only so many digits after the point
    compare(backend, "attention_forward", y, lse, q, k, v, tolerance=1e-6 * size)
    backend.attention_backward(q, k, v, arrays.normal(*q.shape), q, k, v, y, lse)
    assert all(np.isfinite(x).all() for x in (q, k, v))


@pytest.mark.parametrize(
    ("B", "T", "NH", "NKV", "hs"), [(1, 1, 1, 1, 2), (2, 3, 2, 2, 3), (1, 4, 4, 2, 2), (1, 3, 3, 1, 1)]
)
def test_gradients_agree_with_differences(doubles, B, T, NH, NKV, hs):
    q, k, v = doubles.qkv(B, T, NH, NKV, hs)
    dy = doubles.normal(B, T, NH, hs)

    def loss():
        return (forward(reference, doubles, q, k, v)[0] * dy).sum()

    y, lse = forward(reference, doubles, q, k, v)
    gradients = doubles.qkv(B, T, NH, NKV, hs)
    reference.attention_backward(*gradients, dy, q, k, v, y, lse)
    for gradient, x in zip(gradients, (q, k, v), strict=True):
        assert_agree(gradient, numerical_gradient(loss, x), 1e-6, floor=1e-9)
