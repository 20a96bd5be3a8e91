"""Learning-rate schedules beside llm.c's formulas, and the default learning rate."""

import math

import pytest

from llmpy import UserError
from llmpy.training.config import SCHEDULES
from llmpy.training.lr_schedule import LR, LR_CHANNELS, default_learning_rate, learning_rate


@pytest.mark.parametrize(("channels", "expected"), [(LR_CHANNELS, LR), (128, 2.5e-3)])
def test_the_default_learning_rate_is_higher_for_narrower_models(channels, expected):
    assert default_learning_rate(channels) == expected


def llm_c(schedule, step, steps, lr, warmup, fraction):
    """llmc/schedulers.h, line by line."""
    lowest = lr * fraction
    if schedule == "constant":
        return lr
    if step < warmup:
        return lr * (step + 1) / warmup
    ratio = (step - warmup) / (steps - warmup)
    if schedule == "cosine":
        return lowest + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (lr - lowest)
    if schedule == "linear":
        return lr - ratio * (lr - lowest)
    decay_point = int(0.8 * steps)
    if step < decay_point:
        return lr
    return lowest + (1.0 - math.sqrt((step - decay_point) / (steps - decay_point))) * (lr - lowest)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_llm_cs(schedule, warmup, fraction):
    for step in range(40):
        ours = learning_rate(step, 40, 3e-4, schedule, warmup, fraction)
        assert ours == pytest.approx(llm_c(schedule, step, 40, 3e-4, warmup, fraction), rel=1e-12)


def test_schedules_at_their_corners():
    assert learning_rate(0, 100, 1.0, "cosine", 10) == 0.1
    assert learning_rate(9, 100, 1.0, "cosine", 10) == learning_rate(10, 100, 1.0, "cosine", 10) == 1.0
    assert learning_rate(55, 100, 1.0, "cosine", 10, 0.2) == pytest.approx(0.6)
    assert learning_rate(55, 100, 1.0, "linear", 10, 0.2) == pytest.approx(0.6)
    assert learning_rate(79, 100, 1.0, "wsd", 10) == learning_rate(80, 100, 1.0, "wsd", 10) == 1.0
    assert learning_rate(85, 100, 1.0, "wsd", 10) == pytest.approx(0.5)
    assert learning_rate(0, 100, 1.0, "constant", 10) == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_longer_than_the_run_and_steps_past_its_end_are_no_error(schedule):
    for step in range(12):
        assert 0 <= learning_rate(step, 5, 1.0, schedule, 8, 0.1) <= 1


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="no schedule 'exponential'"):
        learning_rate(5, 10, 1.0, "exponential")
