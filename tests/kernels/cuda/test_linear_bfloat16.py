"""Linear layers and the classifier as a run in bfloat16 calls them; their other tests are those of all backends."""

import numpy as np
import pytest

pytest.importorskip("triton")

from llmpy.kernels import cuda
from tests.kernels.cuda.products import seen
from tests.kernels.numerics import BFLOAT16, NARROW, compare
from tests.kernels.on_device import OnDevice
from tests.kernels.test_classifier import SHAPES as CLASSIFIER_SHAPES
from tests.kernels.test_classifier import targets_of

KERNELS = OnDevice(cuda)
SHAPES = [(1, 1, 1), (2, 7, 3), (5, 96, 17), (17, 61, 257), (70, 131, 65), (23, 1601, 29)]


@pytest.mark.parametrize(("N", "C", "OC"), SHAPES)
@pytest.mark.parametrize("form", ["plain", "logits", "bias", "residual", "residual in place", "gelu"])
def test_linear_forward(halves, N, C, OC, form):
    x, w = halves.acts(N, C), halves.normal(OC, C, scale=C**-0.5, dtype=BFLOAT16)
    b = None if form in ("plain", "logits") else halves.normal(OC)
    y = halves.acts(N, OC) if form == "residual in place" else halves.empty_acts(N, OC)
    options = {}
    if form == "logits":
        y = halves.empty(N, OC)
    elif form == "gelu":
        options["pre_gelu"] = halves.empty_acts(N, OC)
    elif form.startswith("residual"):
        options["residual"] = y if form == "residual in place" else halves.acts(N, OC)
    # GELU of what was rounded: below zero the error is larger than its value.
    compare(KERNELS, "linear_forward", y, x, w, b, **options, floor=1e-3 if form == "gelu" else 1e-6)


@pytest.mark.parametrize(("N", "C", "OC"), SHAPES)
@pytest.mark.parametrize("form", ["plain", "dx is x", "gelu", "no dx", "no db", "no dw"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_linear_backward(halves, N, C, OC, form, accumulate):
    x, w, dy = halves.acts(N, C), halves.normal(OC, C, scale=OC**-0.5, dtype=BFLOAT16), halves.acts(N, OC)
    dx = None if form == "no dx" else x if form == "dx is x" else halves.empty_acts(N, C)
    dw = None if form == "no dw" else halves.normal(OC, C) if accumulate else halves.empty(OC, C)
    db = None if form == "no db" else halves.normal(OC)
    # dw takes GELU's output, which is rounded.
    tolerance = {"tolerance": NARROW} if form == "gelu" else {}
    arguments = (dx, dw, db, dy, x, w, form == "gelu")
    compare(KERNELS, "linear_backward", *arguments, accumulate=accumulate, floor=2e-6, **tolerance)


def test_a_weight_as_the_optimizer_keeps_it(halves):
    x, w = halves.acts(9, 40), halves.normal(33, 40, dtype=BFLOAT16)
    expected, y = halves.empty_acts(9, 33), halves.empty_acts(9, 33)
    KERNELS.linear_forward(expected, x, w)
    KERNELS.linear_forward(y, x, cuda.Weight(seen(w.reshape(-1)), 33, 40))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(("N", "C", "V", "R"), CLASSIFIER_SHAPES)
@pytest.mark.parametrize("padded", [True, False], ids=["padded rows", "rows as they come"])
@pytest.mark.parametrize("wide", [True, False], ids=["float32 logits", "bfloat16 logits"])
def test_classifier(halves, N, C, V, R, padded, wide):
    x, w = halves.acts(N, C, scale=C**-0.25), halves.normal(V, C, scale=C**-0.25, dtype=BFLOAT16)
    targets = targets_of(halves, V, N)
    held = halves.empty(R, cuda.padded_width(V) if padded else V, dtype=np.float32 if wide else BFLOAT16)
    logits = held[:, :V]
    losses, dx = halves.empty(N), halves.empty_acts(N, C)
    # Each logit is off by a 512th part where it is kept in bfloat16, and gradients are numbers of that type.
    tolerance = {"tolerance": 1e-5 if wide else 5e-3, "floor": 1e-6 if wide else 1e-3, "scratch": logits}
    compare(KERNELS, "classifier_forward", losses, x, w, targets, logits, **tolerance)
    for accumulate in (False, True):
        dw = halves.normal(V, C) if accumulate else halves.empty(V, C)
        arguments = (losses, dx, dw, x, w, targets, 0.7, logits)
        tolerance = {"tolerance": 5e-3, "narrow": 1e-2, "floor": 2e-3, "scratch": logits}
        compare(KERNELS, "classifier_backward", *arguments, accumulate=accumulate, **tolerance)


def test_rows_wider_than_a_block_of_the_softmax(arrays, monkeypatch):
    """As on a GPU, where a row of logits is read in pieces; the largest is in the last of them."""
    monkeypatch.setattr("llmpy.kernels.cuda.classifier.configuration", lambda V: {"block": 64, "num_warps": 4})
    for dtype in (np.float32, BFLOAT16):
        x, w = arrays.normal(5, 8, dtype=dtype), arrays.normal(301, 8, dtype=dtype)
        w[300] *= 30
        logits = arrays.empty(3, cuda.padded_width(301))[:, :301]
        losses, dx, dw = arrays.empty(5), arrays.empty(5, 8, dtype=dtype), arrays.empty(301, 8)
        targets = np.array([300, 0, -1, 64, 63], np.int32)
        arguments = (losses, dx, dw, x, w, targets, 1.0, logits)
        tolerance = {"tolerance": 1e-5 if dtype == np.float32 else 5e-3, "narrow": 1e-2, "floor": 2e-6}
        compare(KERNELS, "classifier_backward", *arguments, accumulate=False, scratch=logits, **tolerance)


def test_logits_have_room_for_their_gradients(arrays):
    x, w, logits = arrays.normal(2, 4), arrays.normal(7, 4), arrays.empty(2, 7, dtype=BFLOAT16)
    arguments = (arrays.empty(2), arrays.empty(2, 4), arrays.empty(7, 4), x, w, arrays.tokens(7, 2), 1.0, logits)
    with pytest.raises(ValueError, match="no room"):
        KERNELS.classifier_backward(*arguments)
