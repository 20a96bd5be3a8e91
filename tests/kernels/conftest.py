import os

import pytest

from llmpy import kernels
from tests.kernels.numerics import Arrays


@pytest.fixture(scope="session", params=kernels.BACKENDS)
def backend(request):
    """Every backend in turn. The reference is among them: in float32 it must agree with itself in float64."""
    module = kernels.load(request.param)
    if request.param == "cpu" and "LLMPY_ISA" not in os.environ:  # test_isa.py needs a few kernels only
        module.compile_all()
    return module


@pytest.fixture
def arrays():
    """float32 arrays with guarded borders, which are looked at when the test is over."""
    made = Arrays()
    yield made
    made.check()


@pytest.fixture
def doubles():
    """The same in float64, for gradients by differences."""
    made = Arrays(dtype=float)
    yield made
    made.check()
