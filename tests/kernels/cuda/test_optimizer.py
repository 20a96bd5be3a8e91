"""Weights of a GPU: the bits that the CPU makes from the same numbers and seed; and what stays on the device."""

import numpy as np
import pytest

pytest.importorskip("triton")

from llmpy import kernels
from llmpy.kernels.cuda.runtime import workspace
from llmpy.kernels.cuda.runtime.array import DeviceArray, empty
from llmpy.training.optimizer import clip_scale
from tests.kernels.numerics import BFLOAT16, assert_agree, dense
from tests.kernels.on_device import OnDevice
from tests.kernels.test_bfloat16 import any_bits, assert_same_numbers, nearest
from tests.kernels.test_optimizer import SIZES
from tests.kernels.test_packed_weight import RECIPE

DIRECT = kernels.load("cuda")
CUDA = OnDevice(DIRECT)
SHAPES = [(1, 1), (3, 1), (49, 131), (257, 3), (70, 1601)]


def new_weight(OC, C):
    return DIRECT.Weight(empty(DIRECT.weight_size(OC, C), dtype=BFLOAT16), OC, C)


@pytest.mark.parametrize(("OC", "C"), SHAPES)
@pytest.mark.parametrize("rounding", [0, 1, 77, 2**31, 2**32 - 1])
def test_a_weight_holds_the_numbers_that_the_cpu_makes(narrow, halves, OC, C, rounding):
    weight = new_weight(OC, C)
    for w in (halves.normal(OC, C), any_bits(halves, OC, C)):
        CUDA.pack_weight(weight, w, rounding)
        assert_same_numbers(weight.matrix.numpy(), nearest(dense(halves.packed(w, rounding)).astype(np.float32)))


@pytest.mark.parametrize(("OC", "C"), SHAPES)
@pytest.mark.parametrize("rounding", [0, 77])
def test_the_optimizer_leaves_what_packing_its_parameters_would(arrays, OC, C, rounding):
    p, g, m, v = arrays.normal(OC, C), arrays.normal(OC, C), arrays.normal(OC, C), np.square(arrays.normal(OC, C))
    apart = [x.copy().reshape(-1) for x in (p, g, m, v)]
    weight, packed = new_weight(OC, C), new_weight(OC, C)
    CUDA.adamw(p, g, m, v, *RECIPE, weight=weight, rounding=rounding)
    CUDA.adamw(*apart, *RECIPE)
    for one, other in zip((p, g, m, v), apart, strict=True):
        np.testing.assert_array_equal(one.reshape(-1), other)
    CUDA.pack_weight(packed, p, rounding)
    np.testing.assert_array_equal(weight.numbers.numpy(), packed.numbers.numpy())


@pytest.mark.parametrize("largest", [0.0, 1.0, 1e6])
def test_clipping_need_not_wait_for_the_norm(arrays, largest):
    p, g, m, v = (DeviceArray.of(arrays.normal(1001) ** 2) for _ in range(4))
    again = [DeviceArray.of(x.numpy()) for x in (p, g, m, v)]
    norm, scale = empty(1), empty(1)
    DIRECT.clip_scale(scale, norm, g, largest)
    expected = DIRECT.global_norm(g)
    assert norm.numpy()[0] == np.float32(expected)
    assert scale.numpy()[0] == np.float32(clip_scale(expected, largest))
    DIRECT.adamw(p, g, m, v, *RECIPE[:-1], scale)
    DIRECT.adamw(*again, *RECIPE[:-1], clip_scale(expected, largest))
    for one, other in zip((p, m, v), (again[0], *again[2:]), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("n", SIZES)
def test_the_mean(arrays, n):
    x, y = arrays.normal(n), arrays.empty(3)
    CUDA.mean(y[1:2], x)
    assert_agree(y[1:2], x.mean(keepdims=True, dtype=np.float64), 1e-7)
    assert np.isnan(y[[0, 2]]).all()


def test_scratch_grows_and_what_was_taken_before_stays():
    name = "of a test"
    first, same = workspace.scratch(name, 100), workspace.scratch(name, 5, 5, dtype=np.float32)
    assert (first.shape, first.dtype, same.shape, same.dtype) == ((100,), np.uint8, (5, 5), np.float32)
    assert first.address == same.address
    before, taken = first.address, workspace.scratch_bytes()
    assert workspace.scratch(name, 101).address != before
    assert workspace.scratch_bytes() == taken + 101
    assert workspace.scratch(name, 3).address == workspace.scratch(name, 101).address
