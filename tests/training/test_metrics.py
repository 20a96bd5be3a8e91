"""Metrics of a run: z-scores, throughput, and FLOPs per token."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from llmpy.models.presets import from_descriptor
from llmpy.training.metrics import OutlierDetector, Throughput, flops_per_token


def test_no_value_is_an_outlier_until_there_are_128():
    detector = OutlierDetector()
    assert all(math.isnan(detector.update(float(i))) for i in range(128))
    assert math.isfinite(detector.update(0.0))


def test_the_z_score_is_of_a_window_that_includes_the_newest():
    values = np.random.default_rng(0).normal(3, 2, 400).tolist()
    detector = OutlierDetector()
    for i, value in enumerate(values):
        z = detector.update(value)
        if i >= 128:
            window = values[i - 127 : i + 1]
            expected = (value - statistics.fmean(window)) / statistics.pstdev(window)
            assert z == pytest.approx(expected, rel=1e-9)


def test_a_window_of_one_value_has_no_outliers():
    detector = OutlierDetector()
    for _ in range(200):
        z = detector.update(0.1)
    assert z == 0.0


def test_a_jump_stands_out():
    detector = OutlierDetector()
    for i in range(128):
        detector.update(math.sin(i))
    assert detector.update(100.0) > 10


def test_throughput_is_llm_cs_mean():
    throughput = Throughput()
    assert throughput.update(1000, 10.0) == 100  # the first, which warms up, counts for itself only
    mean = 0.0
    for step, seconds in enumerate([1.0, 2.0, 4.0, 1.0], start=1):
        mean = 0.95 * mean + 0.05 * 1000 / seconds
        assert throughput.update(1000, seconds) == pytest.approx(mean / (1 - 0.95**step))


def test_the_cost_of_a_token_is_llm_cs():
    config = from_descriptor("d12")
    assert flops_per_token(config, 1024) == 6 * 124_475_904 + 6 * 12 * 768 * 1024
    tied = from_descriptor("llama:15M")
    assert flops_per_token(tied, 256) == 6 * 15_191_712 + 6 * 6 * 288 * 256
    assert flops_per_token(replace(tied, tied=False), 256) == flops_per_token(tied, 256), "what is looked up is free"
