"""What the rest of the program asks of the device."""

import numpy as np
import pytest

from llmpy import kernels
from llmpy.errors import UserError
from llmpy.models import precision
from llmpy.utils.memory import MemoryPlan

pytest.importorskip("triton")
from llmpy.kernels.cuda import DeviceArray
from llmpy.kernels.cuda.runtime import device, limits


class Card:
    """A device of which only the figures are asked."""

    def __init__(self, name="NVIDIA H200", capability=(9, 0), free=10**9):
        self.name, self.capability, self.free = name, capability, free

    def memory(self):
        return self.free, 2 * self.free

    def take(self, size):
        pytest.fail("memory was taken")


@pytest.fixture
def this(monkeypatch):
    """Makes a card the device of this process."""
    return lambda card: monkeypatch.setattr(device, "_current", card)


def test_a_plan_is_taken_zeroed_and_in_one_piece():
    plan = MemoryPlan()
    plan.add("some", "a", 3, 5)
    plan.add("some", "b", 1, dtype=np.int32)
    plan.add("more", "c", 2, 2)
    arrays = kernels.load("cuda").take(plan)
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "a": ((3, 5), np.float32),
        "b": ((1,), np.int32),
        "c": ((2, 2), np.float32),
    }
    assert all(isinstance(array, DeviceArray) and not array.numpy().any() for array in arrays.values())
    assert [arrays[name].address - arrays["a"].address for name in "abc"] == [0, 256, 512]
    assert isinstance(kernels.load("reference").take(plan)["a"], np.ndarray)


def test_a_plan_that_does_not_fit_takes_nothing(this):
    this(Card(free=limits.RESERVE + 10**9))
    plan = MemoryPlan()
    plan.add("some", "a", 10**9)
    with pytest.raises(UserError) as error:
        kernels.load("cuda").take(plan, "make it smaller")
    assert str(error.value) == ("this needs 4.0 GB of memory on the NVIDIA H200, and 1.0 GB are free: make it smaller")
    assert kernels.load("cuda").headroom() == 10**9
    this(Card(free=5))
    assert kernels.load("cuda").headroom() == 0


def test_the_peak_is_that_of_the_card(this):
    this(Card())
    assert kernels.load("cuda").peak_flops("bfloat16") == pytest.approx(989.4e12)
    assert kernels.load("cuda").peak_flops("float32") == pytest.approx(66.9e12)
    this(Card(name="NVIDIA H200 MIG 1g.18gb"))
    assert kernels.load("cuda").peak_flops("bfloat16") is None
    assert kernels.load("reference").peak_flops("float32") is None
    assert kernels.load("cuda").device_name() == "NVIDIA H200 MIG 1g.18gb"
    assert kernels.load("reference").device_name() is None


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")])
def test_auto_is_bfloat16_where_the_card_has_it(this, capability, chosen):
    this(Card(capability=capability))
    assert precision.resolve("auto", "cuda") == chosen


def test_bfloat16_is_refused_by_a_card_that_has_none(this):
    this(Card(name="Tesla T4", capability=(7, 5)))
    with pytest.raises(UserError, match="the Tesla T4 has no bfloat16: give --precision float32"):
        kernels.start("cuda", precision="bfloat16")
    kernels.start("cuda", precision="float32")
