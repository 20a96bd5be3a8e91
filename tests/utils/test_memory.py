"""Memory: planned, said, taken in one go, and refused where there is not enough of it."""

import numpy as np
import pytest

from llmpy import UserError
from llmpy.models.gpt2 import GPT2, GPT2Config
from llmpy.utils import memory, system_memory
from llmpy.utils.memory import ALIGNMENT, MemoryPlan


@pytest.fixture
def plan():
    plan = MemoryPlan()
    plan.add("parameters", "w", 3, 5)
    plan.add("parameters", "b", 1)
    plan.add("activations", "x", 7, 1000)
    plan.add("activations", "tokens", 2, 3, dtype=np.int32)
    return plan


def test_arrays_are_what_was_planned_zeroed_aligned_and_apart(plan):
    arrays = plan.take()
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "w": ((3, 5), np.float32),
        "b": ((1,), np.float32),
        "x": ((7, 1000), np.float32),
        "tokens": ((2, 3), np.int32),
    }
    for number, array in enumerate(arrays.values()):
        assert not array.any()
        assert array.ctypes.data % ALIGNMENT == 0
        array[:] = number
    for number, array in enumerate(arrays.values()):
        assert (array == number).all()


def test_the_plan_knows_its_size_and_says_it_by_group(plan):
    assert plan.bytes == 64 + 64 + 28032 + 64
    plan.add("parameters", "large", 500_000)
    assert plan.report() == "memory: 2 MB (parameters 2, activations 0)"


def test_too_much_is_refused_before_it_is_taken(plan, monkeypatch):
    monkeypatch.setattr(system_memory, "available_memory", lambda: system_memory.RESERVE + plan.bytes - 1)
    monkeypatch.setattr(memory, "_map", lambda size: pytest.fail("taken"))
    with pytest.raises(UserError, match=r"needs 0\.0 GB of memory and 0\.0 GB are free: lower --batch-size"):
        plan.take()


def test_where_the_system_does_not_say_it_is_tried(plan, monkeypatch):
    monkeypatch.setattr(system_memory, "available_memory", lambda: None)
    assert plan.take()["b"].shape == (1,)
    plan.add("x", "absurd", 2**60)
    with pytest.raises(UserError, match="the system refused"):
        plan.take()


def test_the_machine_has_memory_and_this_process_some_of_it():
    available = system_memory.available_memory()
    assert available is None or available > 0
    assert system_memory.peak_memory() >= 0


def test_a_model_takes_what_its_plan_says_and_less_with_recomputation():
    config = GPT2Config(vocab_size=257, context=64, layers=4, heads=2, channels=32)
    models = [GPT2(config, "reference", 2, 64, recompute) for recompute in (0, 1, 2)]
    for model in models:
        assert sum(array.nbytes for array in model.arrays.values()) <= model.memory.bytes
        assert sum(array.nbytes for array in model.arrays.values()) > model.memory.bytes - 64 * len(model.arrays)
    assert models[0].memory.bytes > models[1].memory.bytes > models[2].memory.bytes


def test_training_takes_no_more_after_the_first_step():
    config = GPT2Config(vocab_size=257, context=64, layers=2, heads=2, channels=32)
    model = GPT2(config, "reference", 2, 64).initialize()
    x = np.zeros((2, 64), np.int32)
    before = {name: array.ctypes.data for name, array in model.arrays.items()}
    model.loss_and_gradients(x, x)
    assert before == {name: array.ctypes.data for name, array in model.arrays.items()}
