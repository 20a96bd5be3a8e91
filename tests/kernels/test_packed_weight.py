"""Weights in bfloat16: packed for the products, made by the optimizer, rounded to the nearest or at random."""

import numba
import numpy as np
import pytest

from llmpy.kernels import cpu
from tests.kernels.numerics import BFLOAT16, Arrays, assert_agree, dense
from tests.kernels.test_bfloat16 import any_bits, nearest

SHAPES = [(1, 1), (3, 1), (1, 49), (48, 32), (49, 131), (131, 257), (257, 3), (70, 1601), (1031, 67)]
RECIPE = (1e-3, 0.9, 0.95, 1e-8, 0.1, 3, 0.5)


@pytest.fixture
def threads():
    before = numba.get_num_threads()
    yield lambda n: cpu.set_threads(min(n, numba.config.NUMBA_NUM_THREADS))
    cpu.set_threads(before)


@pytest.mark.parametrize(("OC", "C"), SHAPES)
def test_a_packed_weight_holds_the_nearest_numbers(narrow, halves, OC, C):
    for w in (halves.normal(OC, C), any_bits(halves, OC, C)):
        np.testing.assert_array_equal(dense(halves.packed(w)), nearest(w).astype(float))


@pytest.mark.parametrize(("OC", "C"), SHAPES)
@pytest.mark.parametrize("rounding", [0, 77])
def test_the_optimizer_leaves_what_packing_its_parameters_would(narrow, halves, OC, C, rounding):
    p, g, m, v = halves.normal(OC, C), halves.normal(OC, C), halves.normal(OC, C), np.square(halves.normal(OC, C))
    apart = [x.copy().reshape(-1) for x in (p, g, m, v)]
    weight = halves.weight(OC, C)
    narrow.adamw(p, g, m, v, *RECIPE, weight=weight, rounding=rounding)
    narrow.adamw(*apart, *RECIPE)
    for one, other in zip((p, g, m, v), apart, strict=True):  # LLVM may order the sums of one as not of the other
        assert_agree(one.reshape(-1), other.astype(float), 1e-6)
    packed = halves.packed(p, rounding)
    np.testing.assert_array_equal(weight.numbers.view(np.uint16), packed.numbers.view(np.uint16))


# ---- at random ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("OC", "C"), SHAPES)
def test_at_random_a_number_becomes_one_of_its_two_neighbours(narrow, halves, OC, C):
    w = halves.normal(OC, C)
    towards_zero = (w.view(np.uint32) >> 16).astype(np.uint16)
    below, above = (bits.view(BFLOAT16).astype(float) for bits in (towards_zero, towards_zero + np.uint16(1)))
    for seed in (1, 2, 2**32 - 1):
        rounded = dense(halves.packed(w, seed))
        assert ((rounded == below) | (rounded == above)).all()
        exact = halves.empty(OC, C)
        exact[:] = rounded
        np.testing.assert_array_equal(dense(halves.packed(exact, seed)), rounded)  # nothing left to round


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.95])
def test_the_mean_of_what_is_rounded_at_random_is_right(narrow, fraction):
    """Over the numbers of a matrix, and over the seeds for one number; five deviations are allowed."""
    spacing = 2.0**-7  # of bfloat16 above 1
    w = np.full((131, 257), 1 + fraction * spacing, np.float32)
    up = [(dense(Arrays().packed(w, seed)) > 1).mean() for seed in (1, 2, 4242)]
    deviation = np.sqrt(fraction * (1 - fraction) / w.size)
    np.testing.assert_allclose(up, fraction, atol=5 * deviation + 2**-16)
    assert len(set(up)) > 1
    few, seeds = np.ascontiguousarray(w[:3, :5]), 500
    up = np.array([dense(Arrays().packed(few, seed)) > 1 for seed in range(1, seeds + 1)])
    deviation = np.sqrt(fraction * (1 - fraction) / seeds)
    np.testing.assert_allclose(up.mean(axis=0), fraction, atol=5 * deviation)


def test_neighbours_and_following_seeds_have_nothing_to_do_with_each_other(narrow):
    w = np.full((257, 131), 1 + 2.0**-8, np.float32)
    up = [(dense(Arrays().packed(w, seed)) > 1).astype(float) - 0.5 for seed in (6, 7)]
    for one, other in ((up[0], up[1]), (up[0][1:], up[0][:-1]), (up[0][:, 1:], up[0][:, :-1])):
        assert abs((one * other).mean() * 4) < 5 / np.sqrt(one.size)


def test_the_seed_decides_and_the_threads_do_not(narrow, halves, threads):
    w, results = halves.normal(301, 1601), {}
    for count in (1, 2):
        threads(count)
        for seed in (5, 6):
            packed = halves.packed(w, seed).numbers.tobytes()
            assert results.setdefault(seed, packed) == packed
    assert results[5] != results[6]


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_what_is_not_finite_stays_so(narrow, halves, seed):
    w = halves.empty(7, 19)
    w.view(np.uint32)[:] = np.array([0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFF800001, 0x7FC00000, 0xFFFFFFFF, 0])[
        :, None
    ]
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(dense(halves.packed(w, seed)), w.astype(float))
