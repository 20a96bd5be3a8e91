"""What holds for every operation of every backend: names and arguments, bits that repeat, a NaN that is never lost."""

import inspect

import numba
import numpy as np
import pytest

from llmpy import UserError, kernels
from llmpy.kernels import OPERATIONS, cpu, reference
from llmpy.kernels.cpu.jit.compile import Kernel
from tests.kernels import calls
from tests.kernels.numerics import BFLOAT16, Arrays, is_float

INPUTS = [(operation, i) for operation in OPERATIONS for i in calls.make(operation, Arrays()).inputs]
NARROW_INPUTS = [  # where there is bfloat16 among the arguments; the weights of products are packed then
    (operation, i)
    for operation, i in INPUTS
    if operation not in ("adamw", "global_norm")
    and is_float(calls.make(operation, Arrays(activations=BFLOAT16)).arguments[i])
]


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
    with pytest.raises(UserError, match="no kernels for 'tpu': use auto, reference, cpu, cuda, or cuda:N"):
        kernels.load("tpu")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("activations", [np.float32, BFLOAT16])
def test_the_same_bits_for_any_number_of_threads_and_again(operation, activations, threads, narrow):
    results = []
    for count in (1, 2, numba.config.NUMBA_NUM_THREADS, 1):
        threads(min(count, numba.config.NUMBA_NUM_THREADS))
        results.append([x.tobytes() for x in calls.make(operation, Arrays(activations=activations)).on(cpu)])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(("operation", "argument"), INPUTS)
def test_a_nan_goes_on_to_all_that_depends_on_it(operation, argument, backend):
    check_nan(operation, argument, backend, Arrays())


@pytest.mark.parametrize(("operation", "argument"), NARROW_INPUTS)
def test_a_nan_goes_on_in_bfloat16_too(operation, argument, narrow):
    check_nan(operation, argument, narrow, Arrays(activations=BFLOAT16))


def check_nan(operation, argument, backend, arrays):
    """A run that broke must show. What depends on a number is what changes when the number does."""

    def results(run_by, arrays, change):
        call = calls.make(operation, arrays)
        changed = call.arguments[argument]
        changed[tuple(size // 2 for size in changed.shape)] += change
        return call.on(run_by)

    broken = results(backend, arrays, np.nan)
    before, after = (results(reference, Arrays(dtype=float), change) for change in (0, 1))
    for one, other, actual in zip(before, after, broken, strict=True):
        assert np.isnan(actual[one != other]).all()
