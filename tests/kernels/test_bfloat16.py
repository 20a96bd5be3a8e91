"""Operations in bfloat16 against the reference in float64, which is given the same numbers, rounded already.

What ends in bfloat16 may be off by its rounding; what stays float32 (sums, losses, gradients of parameters) may not.
"""

import numpy as np
import pytest

from llmpy.kernels.cpu.gemm.gemm import NN, NT, TN, gemm
from llmpy.kernels.cpu.gemm.packed_weight import PACKED
from tests.kernels.numerics import BFLOAT16, NARROW, Arrays, assert_agree, compare
from tests.kernels.test_classifier import SHAPES as CLASSIFIER_SHAPES
from tests.kernels.test_classifier import targets_of
from tests.kernels.test_embedding import SHAPES as EMBEDDING_SHAPES
from tests.kernels.test_gelu import SHAPES as GELU_SHAPES
from tests.kernels.test_layernorm import SHAPES as LAYERNORM_SHAPES

# N, C, OC: single numbers, primes, one less and one more than tiles and vectors, deeper than a pass of any kind
SHAPES = [
    (1, 1, 1),
    (2, 7, 3),
    (3, 1, 131),
    (4, 49, 257),
    (5, 3, 49),
    (7, 131, 1),
    (8, 32, 48),
    (17, 96, 31),
    (33, 257, 131),
    (64, 768, 64),
    (127, 61, 257),
    (300, 771, 100),
    (61, 3977, 50),
    (9, 4099, 67),
    (66, 5003, 35),
    (13, 37, 4101),
    (1601, 13, 29),
]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, -1e-40, 1 + 2**-8, 1 + 3 * 2**-8]


def any_bits(arrays, *shape):
    """float32 of every size, with zeros, infinities, NaN, denormals, and ties between two bfloat16."""
    numbers = arrays.empty(*shape)
    flat = numbers.reshape(-1)
    flat.view(np.uint32)[:] = arrays.random.integers(0, 2**32, flat.size, dtype=np.uint32)
    flat[: flat.size // 7 * 7 : 7].view(np.uint32)[:] &= 0xFFFF8000  # halfway between two, often
    flat[: len(SPECIAL)] = SPECIAL[: flat.size]
    return numbers


def nearest(numbers):
    """float32 -> bfloat16 by ml_dtypes, which rounds ties to even; it warns of NaN."""
    with np.errstate(invalid="ignore"):
        return numbers.astype(BFLOAT16)


def assert_same_numbers(actual, expected):
    """Bit for bit, but that one NaN is as good as another."""
    assert actual.dtype == expected.dtype == BFLOAT16
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    np.testing.assert_array_equal(actual[~nan].view(np.uint16), expected[~nan].view(np.uint16))


# ---- products ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("N", "C", "OC"), SHAPES)
@pytest.mark.parametrize("form", ["plain", "bias", "residual", "residual in place", "gelu", "logits"])
def test_linear_forward(narrow, halves, N, C, OC, form):
    x, w = halves.acts(N, C), halves.weight(OC, C, scale=C**-0.5)
    b = None if form in ("plain", "logits") else halves.normal(OC)
    y = halves.acts(N, OC) if form == "residual in place" else halves.empty_acts(N, OC)
    options = {}
    if form == "logits":
        y = halves.empty(N, OC)
    elif form == "gelu":
        options["pre_gelu"] = halves.empty_acts(N, OC)
    elif form != "plain" and form != "bias":
        options["residual"] = y if form == "residual in place" else halves.acts(N, OC)
    # GELU of what was rounded: below zero the error is larger than its value.
    compare(narrow, "linear_forward", y, x, w, b, **options, floor=1e-3 if form == "gelu" else 1e-6)


@pytest.mark.parametrize(("N", "C", "OC"), SHAPES)
@pytest.mark.parametrize("form", ["plain", "dx is x", "gelu", "no dx", "no db"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_linear_backward(narrow, halves, N, C, OC, form, accumulate):
    x, w, dy = halves.acts(N, C), halves.weight(OC, C, scale=OC**-0.5), halves.acts(N, OC)
    dx = None if form == "no dx" else x if form == "dx is x" else halves.empty_acts(N, C)
    dw = halves.normal(OC, C) if accumulate else halves.empty(OC, C)
    db = None if form == "no db" else halves.normal(OC)
    arguments = (dx, dw, db, dy, x, w, form == "gelu")
    # dw takes GELU's output, which is rounded.
    tolerance = {"tolerance": NARROW} if form == "gelu" else {}
    compare(narrow, "linear_backward", *arguments, accumulate=accumulate, floor=2e-6, **tolerance)


@pytest.mark.parametrize("layout", [NT, NN, TN], ids=["NT", "NN", "TN"])
@pytest.mark.parametrize(("wide_a", "wide_b"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (3, 131, 49), (49, 7, 257), (70, 67, 33), (35, 66, 1601)])
def test_float32_operands_are_rounded_on_the_way(narrow, halves, layout, wide_a, wide_b, M, N, K):
    a = halves.normal(*((K, M) if layout == TN else (M, K)), dtype=np.float32 if wide_a else BFLOAT16)
    b = halves.normal(*((N, K) if layout == NT else (K, N)), dtype=np.float32 if wide_b else BFLOAT16)
    # Where bfloat16 is made float32 for the products, what is float32 stays as it is.
    A, B = ((x.astype(BFLOAT16) if PACKED else x).astype(float) for x in (a, b))
    expected = (A.T if layout == TN else A) @ (B.T if layout == NT else B)
    c = halves.empty_acts(M, N)
    gemm(c, a, b, layout)
    assert_agree(c, expected, NARROW)
    if not (wide_a and wide_b):  # then something is bfloat16 and c may be either
        c, before = halves.normal(M, N), np.empty((M, N))
        before[:] = c
        gemm(c, a, b, layout, accumulate=True)
        assert_agree(c, before + expected, floor=2e-6)


def test_products_deeper_than_one_visit_do_not_mind_which_came_before(narrow, halves):
    for N, OC in ((9, 70), (5, 33), (9, 50)):
        x, w = halves.acts(N, 5000), halves.weight(OC, 5000, scale=0.01)
        compare(narrow, "linear_forward", halves.empty_acts(N, OC), x, w, halves.normal(OC))


def test_rows_do_not_know_of_each_other(narrow, halves):
    x, w = halves.acts(70, 101), halves.weight(53, 101)
    y, again = halves.empty_acts(70, 53), halves.empty_acts(70, 53)
    narrow.linear_forward(y, x, w)
    x[24:] = np.nan
    narrow.linear_forward(again, x, w)
    assert_same_numbers(again[:24], y[:24])
    assert np.isnan(again[24:]).all()


# ---- rounding ----------------------------------------------------------------------------------------------------


def test_every_float32_becomes_the_nearest(narrow, halves):
    """In loops, in vectors, and in what is left over beside them."""
    wte = any_bits(halves, 67, 1031)
    x = halves.empty_acts(1, 67, 1031)
    narrow.embedding_forward(x, np.arange(67, dtype=np.int32)[None], wte, np.full((67, 1031), -0.0, np.float32))
    assert_same_numbers(x[0], nearest(wte))

    bias = any_bits(halves, 1031)
    zeros, y = halves.empty_acts(5, 3), halves.empty_acts(5, 1031)
    zeros[:] = 0
    narrow.linear_forward(y, zeros, halves.weight(1031, 3), bias)
    assert_same_numbers(y, np.tile(nearest(bias + np.float32(0)), (5, 1)))


def test_what_is_not_finite_comes_out_of_a_product_as_it_should(narrow, halves):
    x, w = halves.acts(40, 50), halves.weight(60, 50)
    x[3, 7], x[20, 49], x[39, 0] = np.inf, -np.inf, np.nan
    y = halves.empty_acts(40, 60)
    narrow.linear_forward(y, x, w)
    finite = np.isfinite(y)
    assert finite[np.setdiff1d(np.arange(40), (3, 20, 39))].all()
    assert np.isinf(y[[3, 20]]).all()
    assert np.isnan(y[39]).all()
    dw, dx = halves.empty(60, 50), halves.empty_acts(40, 50)
    narrow.linear_backward(dx, dw, None, y, x, w, accumulate=False)
    assert np.isnan(dw[:, 0]).all()
    assert not np.isfinite(dx[[3, 20, 39]]).any()


# ---- the others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("B", "T", "C", "V"), EMBEDDING_SHAPES)
def test_embedding(narrow, halves, B, T, C, V):
    wte, wpe = halves.normal(V, C), halves.normal(T + 5, C)
    compare(narrow, "embedding_forward", halves.empty_acts(B, T, C), halves.tokens(V, B, T), wte, wpe, 3)
    tokens = halves.tokens(min(V, 7), B, T)
    compare(narrow, "embedding_backward", halves.normal(V, C), halves.normal(T + 5, C), halves.acts(B, T, C), tokens)


@pytest.mark.parametrize(("N", "C"), LAYERNORM_SHAPES)
def test_layernorm(narrow, halves, N, C):
    x, w, b, mean, rstd = halves.acts(N, C), halves.normal(C), halves.normal(C), halves.empty(N), halves.empty(N)
    compare(narrow, "layernorm_forward", halves.empty_acts(N, C), mean, rstd, x, w, b, floor=1e-6)
    gradients = halves.acts(N, C), halves.normal(C), halves.normal(C)
    compare(narrow, "layernorm_backward", *gradients, halves.acts(N, C), x, w, mean, rstd, floor=1e-6)


@pytest.mark.parametrize("shape", GELU_SHAPES)
def test_gelu(narrow, halves, shape):
    x, dy = halves.acts(*shape, scale=2), halves.acts(*shape)
    compare(narrow, "gelu_forward", halves.empty_acts(*shape), x)
    compare(narrow, "gelu_backward", halves.empty_acts(*shape), dy, x)
    compare(narrow, "gelu_backward", dy, dy, x)
    compare(narrow, "gelu_forward", x, x)


@pytest.mark.parametrize(("N", "C", "V", "R"), CLASSIFIER_SHAPES)
@pytest.mark.parametrize("accumulate", [True, False])
def test_classifier(narrow, halves, N, C, V, R, accumulate):
    x, w, targets, logits = halves.acts(N, C), halves.weight(V, C), targets_of(halves, V, N), halves.empty(R, V)
    losses, again = halves.empty(N), halves.empty(N)
    compare(narrow, "classifier_forward", losses, x, w, targets, logits, scratch=logits, floor=1e-6)
    dw = halves.normal(V, C) if accumulate else halves.empty(V, C)
    arguments = (again, halves.empty_acts(N, C), dw, x, w, targets, 0.7, logits)
    options = {"accumulate": accumulate, "scratch": logits, "floor": 2e-6}
    # Gradients are made of those of the logits, which are rounded on the way and sum up to nothing.
    compare(narrow, "classifier_backward", *arguments, tolerance=NARROW, narrow=2 * NARROW, **options)
    np.testing.assert_array_equal(losses, again)


def test_any_shape(narrow):
    random = np.random.default_rng(5)
    for seed, (N, C, OC) in enumerate(random.integers(1, 150, (25, 3))):
        halves = Arrays(seed, activations=BFLOAT16)
        x, w, dy = halves.acts(N, C), halves.weight(OC, C), halves.acts(N, OC)
        compare(narrow, "linear_forward", halves.empty_acts(N, OC), x, w, halves.normal(OC))
        gradients = halves.empty_acts(N, C), halves.normal(OC, C), halves.normal(OC)
        compare(narrow, "linear_backward", *gradients, dy, x, w, floor=1e-6)
        halves.check()
