"""Attention in bfloat16 against the reference in float64, which is given the same numbers."""

import numpy as np
import pytest

from tests.kernels.numerics import NARROW, Arrays, assert_agree, compare
from tests.kernels.test_attention import LATER
from tests.kernels.test_attention import SHAPES as ALL_SHAPES

# Single numbers, and every head size at a length beyond two panels; grouped queries; other lengths
SHAPES = [shape for shape in ALL_SHAPES if shape[1] in (1, 129) or shape[4] == 40 or shape[2] != 2] + [
    (2, 70, 4, 2, 24),
    (1, 33, 6, 2, 80),
    (1, 97, 3, 1, 128),
]
FLOOR = 2e-5  # of values around 1: the scores' gradients are differences that cancel


def forward(narrow, arrays, q, k, v):
    B, T, NH, hs = q.shape
    y, lse = arrays.empty_acts(B, T, NH, hs), arrays.empty(B, NH, T)
    narrow.attention_forward(y, lse, q, k, v)
    return y, lse


@pytest.mark.parametrize(("B", "T", "NH", "NKV", "hs"), SHAPES)
def test_forward(narrow, halves, B, T, NH, NKV, hs):
    q, k, v = halves.qkv(B, T, NH, NKV, hs)
    compare(narrow, "attention_forward", halves.empty_acts(B, T, NH, hs), halves.empty(B, NH, T), q, k, v)


@pytest.mark.parametrize(("B", "T", "NH", "NKV", "hs"), SHAPES)
@pytest.mark.parametrize("in_place", [True, False])
def test_backward(narrow, halves, B, T, NH, NKV, hs, in_place):
    q, k, v = halves.qkv(B, T, NH, NKV, hs)
    y, lse = forward(narrow, halves, q, k, v)
    gradients = (q, k, v) if in_place else halves.qkv(B, T, NH, NKV, hs)
    compare(
        narrow, "attention_backward", *gradients, halves.acts(B, T, NH, hs), q, k, v, y, lse, narrow=2 * NARROW,
        floor=FLOOR,
    )  # fmt: skip


@pytest.mark.parametrize(("B", "Tq", "T", "NH", "NKV", "hs"), LATER)
def test_queries_of_the_last_tokens(narrow, halves, B, Tq, T, NH, NKV, hs):
    q, caches = halves.qkv(B, Tq, NH, NKV, hs)[0], [halves.acts(B, T + 9, NKV, hs)[:, :T] for _ in range(2)]
    compare(narrow, "attention_forward", halves.empty_acts(B, Tq, NH, hs), halves.empty(B, NH, Tq), q, *caches)


def test_a_text_read_in_parts_is_the_text_read_at_once_bit_for_bit(narrow, halves):
    q, k, v = halves.qkv(1, 301, 4, 2, 40)
    y, _ = forward(narrow, halves, q, k, v)
    for start, end in ((0, 7), (7, 120), (120, 121), (121, 301)):
        part, lse = halves.empty_acts(1, end - start, 4, 40), halves.empty(1, 4, end - start)
        narrow.attention_forward(part, lse, q[:, start:end], k[:, :end], v[:, :end])
        np.testing.assert_array_equal(part, y[:, start:end])


@pytest.mark.parametrize(
    ("S", "T", "NH", "NKV", "hs"), [(1, 1, 1, 1, 1), (3, 9, 2, 2, 40), (2, 130, 6, 2, 64), (5, 300, 4, 1, 80)]
)
def test_decoding(narrow, halves, S, T, NH, NKV, hs):
    q, keys, values = halves.acts(S, NH, hs), halves.acts(S, T, NKV, hs), halves.acts(S, T, NKV, hs)
    positions = halves.tokens(T, S)
    positions[0] = T - 1
    for s in range(S):
        keys[s, positions[s] + 1 :], values[s, positions[s] + 1 :] = 1e30, 1e30
    compare(narrow, "attention_decode", halves.empty_acts(S, NH, hs), q, keys, values, positions)


@pytest.mark.parametrize("size", [30.0, 1e3, 1e5])
def test_large_scores_do_not_overflow(narrow, halves, size):
    q, k, v = halves.qkv(1, 70, 2, 2, 16)
    q[:] = np.rint(q.astype(np.float32) * 4) / 4 * size
    k[:] = np.rint(k.astype(np.float32) * 4) / 4
    y, lse = halves.empty_acts(*q.shape), halves.empty(1, 2, 70)
    compare(narrow, "attention_forward", y, lse, q, k, v, tolerance=1e-6 * size)
    narrow.attention_backward(q, k, v, halves.acts(*q.shape), q, k, v, y, lse)
    assert all(np.isfinite(x).all() for x in (q, k, v))


def test_the_past_does_not_see_the_future(narrow, halves):
    q, k, v = halves.qkv(1, 150, 2, 2, 32)
    y, lse = forward(narrow, halves, q, k, v)
    for x in (q, k, v):
        x[:, 100:] = 7
    again, lse_again = forward(narrow, halves, q, k, v)
    np.testing.assert_array_equal(y[:, :100], again[:, :100])
    np.testing.assert_array_equal(lse[:, :, :100], lse_again[:, :, :100])


@pytest.fixture(scope="module")
def long():
    """q, k, v, dy [T, hs] in float64, and y, lse and the gradients that the kernels make of them, for T = 8192."""
    from llmpy.kernels import cpu

    T, hs, halves = 8192, 8, Arrays(activations=np.dtype("bfloat16"))
    q, k, v = halves.qkv(1, T, 1, 1, hs)
    dy = halves.acts(1, T, 1, hs)
    y, lse = forward(cpu, halves, q, k, v)
    gradients = halves.qkv(1, T, 1, 1, hs)
    cpu.attention_backward(*gradients, dy, q, k, v, y, lse)
    halves.check()
    return [x.reshape(T, hs).astype(float) for x in (q, k, v, dy, y, *gradients)], lse.reshape(T).astype(float)


def test_a_long_sequence_is_right_where_it_is_looked_at(narrow, long):
    (q, k, v, dy, y, dq, dk, dv), lse = long
    T, hs = q.shape
    scale, looked_at = hs**-0.5, [0, 1, 47, 48, 1000, 4095, 4096, 7777, T - 1]
    mean = (dy * y).sum(axis=1)
    for t in looked_at:
        scores = k[: t + 1] @ q[t] * scale
        expected = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
        assert lse[t] == pytest.approx(expected, rel=1e-5)
        p = np.exp(scores - expected)
        assert_agree(y[t], p @ v[: t + 1], NARROW, floor=1e-4)
        ds = p * (v[: t + 1] @ dy[t] - mean[t]) * scale
        assert_agree(dq[t], ds @ k[: t + 1], 2 * NARROW, floor=1e-4)
    for s in looked_at:
        p = np.exp(q[s:] @ k[s] * scale - lse[s:])
        assert_agree(dv[s], p @ dy[s:], 2 * NARROW, floor=1e-4)
        ds = p * (dy[s:] @ v[s] - mean[s:]) * scale
        assert_agree(dk[s], ds @ q[s:], 2 * NARROW, floor=1e-4)
