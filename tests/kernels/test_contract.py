"""What holds for every operation of every backend: names and arguments, bits that repeat, a NaN that is never lost."""

import inspect

import numba
import numpy as np
import pytest

from llmpy import UserError, kernels
from llmpy.kernels import OPERATIONS, cpu, reference
from llmpy.kernels.cpu.compile import Kernel
from tests.kernels import calls
from tests.kernels.numerics import Arrays

INPUTS = [(operation, i) for operation in OPERATIONS for i in calls.make(operation, Arrays()).inputs]


@pytest.fixture
def threads():
    """Sets the number of threads of the CPU backend, and puts it back."""
    before = numba.get_num_threads()
    yield cpu.set_threads
    cpu.set_threads(before)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_backends_take_the_arguments_that_the_reference_takes(operation):
    def parameters(backend):
        function = getattr(backend, operation)
        python = function.dispatcher.py_func if isinstance(function, Kernel) else function
        return {parameter.name: parameter.default for parameter in inspect.signature(python).parameters.values()}

    theirs, ours = parameters(reference), parameters(cpu)
    narrow = {name: ours.pop(name) for name in list(ours)[len(theirs) :]}  # what bfloat16 takes besides
    assert list(ours.items()) == list(theirs.items())
    assert narrow == ({"weight": None, "rounding": 0} if operation == "adamw" else {})
    assert operation in kernels.__doc__


def test_an_unknown_backend_is_one_clear_line():
    with pytest.raises(UserError, match="no kernels for 'tpu': use reference or cpu"):
        kernels.load("tpu")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_same_bits_for_any_number_of_threads_and_again(operation, threads):
    results = []
    for count in (1, 2, numba.config.NUMBA_NUM_THREADS, 1):
        threads(min(count, numba.config.NUMBA_NUM_THREADS))
        results.append([x.tobytes() for x in calls.make(operation, Arrays()).on(cpu)])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(("operation", "argument"), INPUTS)
def test_a_nan_goes_on_to_all_that_depends_on_it(operation, argument, backend):
    """A run that broke must show. What depends on a number is what changes when the number does."""

    def results(run_by, dtype, change):
        call = calls.make(operation, Arrays(dtype=dtype))
        changed = call.arguments[argument]
        changed[tuple(size // 2 for size in changed.shape)] += change
        return call.on(run_by)

    broken = results(backend, np.float32, np.nan)
    for before, after, actual in zip(results(reference, float, 0), results(reference, float, 1), broken, strict=True):
        assert np.isnan(actual[before != after]).all()
