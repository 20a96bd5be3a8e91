"""Attention on the GPU, where the tests of every backend end: bfloat16, rotary positions, other blocks, decoding."""

import importlib

import numpy as np
import pytest

pytest.importorskip("triton")

from llmpy import kernels
from llmpy.kernels import reference
from llmpy.kernels.reference.attention import attention_decode as reference_decode
from tests.kernels.numerics import BFLOAT16, Arrays, assert_agree, compare, in_float64
from tests.kernels.on_device import OnDevice

FLOOR = 2e-6
TOLERANCES = {"float32": {"tolerance": 1e-5, "floor": FLOOR}, "bfloat16": {"tolerance": 4e-3, "narrow": 8e-3}}
HEADS = [  # B, T, NH, NKV, hs
    (1, 150, 2, 2, 64), (1, 131, 2, 1, 80), (1, 129, 2, 2, 96), (1, 140, 2, 1, 128), (1, 37, 6, 2, 40),
    (1, 33, 1, 1, 256),
]  # fmt: skip


@pytest.fixture(scope="module")
def backend():
    return OnDevice(kernels.load("cuda"))


@pytest.fixture(params=["float32", "bfloat16"])
def made(request):
    """Arrays of a precision, its name, and the tolerances of `compare` for it."""
    arrays = Arrays(activations=BFLOAT16 if request.param == "bfloat16" else None)
    yield arrays, TOLERANCES[request.param]
    arrays.check()


class Rotated:
    """The reference's attention after its rope, as one operation: what `rope=` stands for."""

    @staticmethod
    def attention_forward(y, lse, q, k, v, rope):
        q, k = q.copy(), k.copy()
        past = np.full(len(q), k.shape[1] - q.shape[1], np.int32)
        reference.rope_forward(q, *rope, positions=past)
        reference.rope_forward(k, *rope)
        reference.attention_forward(y, lse, q, k, v)

    @staticmethod
    def attention_backward(dq, dk, dv, dy, q, k, v, y, lse, rope):
        q, k = q.copy(), k.copy()
        reference.rope_forward(q, *rope)
        reference.rope_forward(k, *rope)
        reference.attention_backward(dq, dk, dv, dy, q, k, v, y, lse)
        reference.rope_backward(dq, *rope)
        reference.rope_backward(dk, *rope)


def angles(arrays, T, hs):
    """cos and sin [T, hs/2]."""
    turned = np.arange(T)[:, None] * 10000 ** (-np.arange(0, hs, 2) / hs)
    cos, sin = arrays.empty(T, hs // 2), arrays.empty(T, hs // 2)
    cos[:], sin[:] = np.cos(turned), np.sin(turned)
    return cos, sin


def agree(actual, expected, tolerances):
    for x, wanted in zip(actual, expected, strict=True):
        limit = tolerances.get("narrow", 0) if x.dtype == BFLOAT16 else tolerances["tolerance"]
        assert_agree(x, wanted, limit, tolerances.get("floor", 2e-3))


@pytest.mark.parametrize(("B", "T", "NH", "NKV", "hs"), HEADS)
def test_both_passes_agree_in_both_precisions(backend, made, B, T, NH, NKV, hs):
    arrays, tolerances = made
    q, k, v = arrays.qkv(B, T, NH, NKV, hs)
    y, lse = arrays.empty_acts(B, T, NH, hs), arrays.empty(B, NH, T)
    compare(backend, "attention_forward", y, lse, q, k, v, **tolerances)
    compare(backend, "attention_backward", q, k, v, arrays.acts(B, T, NH, hs), q, k, v, y, lse, **tolerances)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("B", "T", "NH", "NKV", "hs"), HEADS)
def test_rotary_positions_are_made_while_reading(backend, made, B, T, NH, NKV, hs, interleaved):
    arrays, tolerances = made
    (q, k, v), (cos, sin) = arrays.qkv(B, T, NH, NKV, hs), angles(arrays, T + 3, hs)
    y, lse, dy = arrays.empty_acts(B, T, NH, hs), arrays.empty(B, NH, T), arrays.acts(B, T, NH, hs)
    doubles = in_float64([y, lse, q, k, v, cos, sin])
    Rotated.attention_forward(*doubles[:5], (*doubles[5:], interleaved))
    places = [backend._place(x, {}) for x in (cos, sin)]
    backend.attention_forward(y, lse, q, k, v, rope=(*places, interleaved))
    agree((y, lse, q, k, v), doubles[:5], tolerances)
    doubles = in_float64([q, k, v, dy, q, k, v, y, lse, cos, sin])
    Rotated.attention_backward(*doubles[:9], (*doubles[9:], interleaved))
    backend.attention_backward(q, k, v, dy, q, k, v, y, lse, rope=(*places, interleaved))
    agree((q, k, v, dy, y, lse), [*doubles[:4], *doubles[7:9]], tolerances)


@pytest.mark.parametrize("interleaved", [True, False])
def test_later_queries_are_turned_by_their_own_positions(backend, made, interleaved):
    arrays, tolerances = made
    q, k, v = (arrays.acts(2, n, heads, 24) for n, heads in ((17, 4), (140, 2), (140, 2)))
    cos, sin = angles(arrays, 140, 24)
    y, lse = arrays.empty_acts(2, 17, 4, 24), arrays.empty(2, 4, 17)
    doubles = in_float64([y, lse, q, k, v, cos, sin])
    Rotated.attention_forward(*doubles[:5], (*doubles[5:], interleaved))
    backend.attention_forward(y, lse, q, k, v, rope=(*(backend._place(x, {}) for x in (cos, sin)), interleaved))
    agree((y, lse), doubles[:2], tolerances)


@pytest.mark.parametrize(("queries", "keys"), [(32, 64), (64, 32), (16, 16)])
def test_blocks_of_any_shape_agree(backend, monkeypatch, queries, keys):
    arrays = Arrays()
    T = 45 if queries == keys else 101
    q, k, v = arrays.qkv(1, T, 4, 2, 24)
    blocks = {"queries": queries, "keys": keys}
    for name in ("attention.forward", "attention.backward"):
        monkeypatch.setattr(importlib.import_module(f"llmpy.kernels.cuda.{name}"), "chosen", lambda *_: blocks)
    y, lse = arrays.empty(1, T, 4, 24), arrays.empty(1, 4, T)
    compare(backend, "attention_forward", y, lse, q, k, v)
    compare(backend, "attention_backward", q, k, v, arrays.normal(1, T, 4, 24), q, k, v, y, lse, floor=FLOOR)
    arrays.check()


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize(("S", "T", "NH", "NKV", "hs"), [(3, 300, 6, 2, 64), (2, 129, 3, 3, 80), (1, 17, 32, 1, 24)])
def test_decoding_agrees_with_the_reference(backend, made, S, T, NH, NKV, hs, chosen):
    arrays, tolerances = made
    # A head's rows lie together, as the engine has them: other strides than those of the axes' order.
    caches = [arrays.acts(S + 2, NKV, T, hs).swapaxes(1, 2) for _ in range(2)]
    q, y = arrays.acts(S, NH, hs), arrays.empty_acts(S, NH, hs)
    positions = np.array([T - 1, 0, T // 2], np.int32)[:S]
    slots = np.array([S + 1, 0, 2], np.int32)[:S] if chosen else None
    doubles = in_float64([y, q, *caches])
    reference_decode(*doubles, positions, slots)
    backend.attention_decode(y, q, *caches, positions, slots)
    agree((y, q, *caches), doubles, tolerances)


def test_decoding_reads_nothing_past_the_position(backend):
    arrays = Arrays()
    caches = [arrays.normal(2, 400, 1, 16) for _ in range(2)]
    q, y, again = arrays.normal(2, 2, 16), arrays.empty(2, 2, 16), arrays.empty(2, 2, 16)
    positions = np.array([127, 200], np.int32)
    backend.attention_decode(y, q, *caches, positions)
    for cache in caches:
        cache[0, 128:], cache[1, 201:] = np.nan, np.nan
    backend.attention_decode(again, q, *caches, positions)
    np.testing.assert_array_equal(y, again)
    arrays.check()
