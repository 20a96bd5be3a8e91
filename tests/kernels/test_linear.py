import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpy.kernels import reference
from tests.kernels.numerics import Arrays, assert_agree, compare, numerical_gradient

# N, C, OC: single numbers, primes, one less and one more than tiles and vectors, deeper than one pass
SHAPES = [
    (1, 1, 1),
    (1, 768, 131),
    (2, 7, 3),
    (3, 5, 5),
    (4, 17, 96),
    (5, 96, 17),
    (7, 49, 47),
    (8, 16, 48),
    (9, 33, 49),
    (17, 96, 31),
    (64, 768, 64),
    (127, 61, 257),
    (257, 131, 65),
    (23, 1601, 29),
    (300, 771, 100),
]


@pytest.mark.parametrize(("N", "C", "OC"), SHAPES)
@pytest.mark.parametrize(
    "form", ["plain", "bias", "residual", "residual in place", "residual without bias", "gelu", "gelu without bias"]
)
def test_forward_agrees_with_the_reference(backend, arrays, N, C, OC, form):
    x, w = arrays.normal(N, C), arrays.normal(OC, C, scale=C**-0.5)
    b = None if form == "plain" or "without bias" in form else arrays.normal(OC)
    y = arrays.normal(N, OC) if form == "residual in place" else arrays.empty(N, OC)
    options = {}
    if form.startswith("residual"):
        options["residual"] = y if form == "residual in place" else arrays.normal(N, OC)
    if form.startswith("gelu"):
        options["pre_gelu"] = arrays.empty(N, OC)
    compare(backend, "linear_forward", y, x, w, b, **options)


@pytest.mark.parametrize(("N", "C", "OC"), SHAPES)
@pytest.mark.parametrize("form", ["plain", "dx is x", "gelu", "no dx", "no dw", "no db"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_backward_agrees_with_the_reference(backend, arrays, N, C, OC, form, accumulate):
    x, w, dy = arrays.normal(N, C), arrays.normal(OC, C, scale=OC**-0.5), arrays.normal(N, OC)
    dx = None if form == "no dx" else x if "dx is x" in form else arrays.empty(N, C)
    dw = arrays.normal(OC, C) if accumulate else arrays.empty(OC, C)  # what is written may hold anything, NaN too
    dw = None if form == "no dw" else dw
    db = None if form == "no db" else arrays.normal(OC)
    compare(backend, "linear_backward", dx, dw, db, dy, x, w, form == "gelu", accumulate=accumulate, floor=2e-6)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 150))
def test_any_shape(backend, N, C, OC):
    arrays = Arrays(N * 1000003 + C * 1009 + OC)
    x, w, dy, pre_gelu = arrays.normal(N, C), arrays.normal(OC, C), arrays.normal(N, OC), arrays.empty(N, OC)
    compare(backend, "linear_forward", arrays.empty(N, OC), x, w, arrays.normal(OC), pre_gelu=pre_gelu, floor=1e-6)
    compare(
        backend, "linear_backward", arrays.empty(N, C), arrays.normal(OC, C), arrays.normal(OC), dy, x, w, floor=1e-6
    )
    arrays.check()


def test_rows_do_not_know_of_each_other(backend, arrays):
    """A sequence's result must not change with what else is in the batch."""
    x, w = arrays.normal(48, 100), arrays.normal(50, 100)
    y, again = arrays.empty(48, 50), arrays.empty(48, 50)
    backend.linear_forward(y, x, w)
    x[24:] = 1e30
    backend.linear_forward(again, x, w)
    np.testing.assert_array_equal(y[:24], again[:24])


@pytest.mark.parametrize("form", ["bias", "residual", "gelu"])
@pytest.mark.parametrize(("N", "C", "OC"), [(1, 1, 1), (2, 3, 4), (3, 5, 2)])
def test_gradients_of_forward_agree_with_differences(doubles, form, N, C, OC):
    x, w, b = doubles.normal(N, C), doubles.normal(OC, C), doubles.normal(OC)
    dy, y = doubles.normal(N, OC), doubles.empty(N, OC)
    residual, pre_gelu = doubles.normal(N, OC), doubles.empty(N, OC)

    def loss():
        options = {"residual": residual} if form == "residual" else {"pre_gelu": pre_gelu} if form == "gelu" else {}
        reference.linear_forward(y, x, w, b, **options)
        return (y * dy).sum()

    loss()
    dproduct = dy.copy()
    if form == "gelu":
        reference.gelu_backward(dproduct, dy, pre_gelu)
    dx, dw, db = doubles.empty(N, C), doubles.normal(OC, C), doubles.normal(OC)
    before = dw.copy(), db.copy()
    reference.linear_backward(dx, dw, db, dproduct, x, w)
    assert_agree(dx, numerical_gradient(loss, x), 1e-6)
    assert_agree(dw - before[0], numerical_gradient(loss, w), 1e-6)
    assert_agree(db - before[1], numerical_gradient(loss, b), 1e-6)
    if form == "residual":
        assert_agree(dproduct, numerical_gradient(loss, residual), 1e-6)


def test_gradient_through_a_gelu_before_it_agrees_with_differences(doubles):
    pre_gelu, w, dy = doubles.normal(3, 5), doubles.normal(4, 5), doubles.normal(3, 4)
    x, y = doubles.empty(3, 5), doubles.empty(3, 4)

    def loss():
        reference.gelu_forward(x, pre_gelu)
        reference.linear_forward(y, x, w)
        return (y * dy).sum()

    loss()
    dw, dpre_gelu, hidden = doubles.empty(4, 5), doubles.empty(3, 5), pre_gelu.copy()
    reference.linear_backward(dpre_gelu, dw, None, dy, hidden, w, gelu=True, accumulate=False)
    assert_agree(hidden, x, 1e-12)
    assert_agree(dw, dy.T @ x, 1e-12)
    assert_agree(dpre_gelu, numerical_gradient(loss, pre_gelu), 1e-6)
