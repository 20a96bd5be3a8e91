"""A small model trained by us and by PyTorch on the same batches: the losses fall together."""

import pydoc_data.topics
from dataclasses import replace

import numpy as np
import pytest

from llmpy import kernels
from llmpy.bench import loss_curve
from llmpy.models.gpt2 import GPT2Config
from llmpy.utils.progress_bar import bar

STEPS = 40


@pytest.fixture(scope="module")
def curve():
    kernels.start("cpu")
    text = " ".join(pydoc_data.topics.topics.values())[:100_000].encode()
    config = GPT2Config(vocab_size=256, context=32, layers=2, heads=4, channels=64)
    return loss_curve.Curve(config, np.frombuffer(text, np.uint8), 8, 32, STEPS, lr=3e-3, warmup=10)


def test_losses_fall_as_those_of_pytorch_do(curve):
    pytest.importorskip("torch")
    with bar("training", 3 * STEPS, "steps") as shown:
        ours, theirs = loss_curve.ours(curve, shown), loss_curve.pytorch(curve, shown)
        nudged = loss_curve.pytorch(curve, shown, nudge=1e-7)
    assert ours[0] == pytest.approx(np.log(256), abs=0.1)
    assert ours[-1] < 3.5
    assert np.abs(np.subtract(ours, theirs))[:10].max() < 1e-5, "to the last digits, before rounding has grown"
    noise = loss_curve.largest_difference(theirs, nudged, 10)
    assert loss_curve.largest_difference(ours, theirs, 10) < max(10 * noise, 1e-3)


def test_batches_are_the_same_each_time(curve):
    for (x, y), (x2, y2) in zip(curve.batches(), curve.batches(), strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])


def test_smoothing_is_a_moving_mean():
    np.testing.assert_allclose(loss_curve.smoothed([1, 2, 3, 6], 2), [1.5, 2.5, 4.5])
    assert loss_curve.largest_difference([1, 2, 3], [1, 2, 9], 3) == 2


def test_our_curve_repeats_bit_for_bit(curve):
    short = replace(curve, steps=8)
    with bar("training") as shown:
        assert loss_curve.ours(short, shown) == loss_curve.ours(short, shown)
