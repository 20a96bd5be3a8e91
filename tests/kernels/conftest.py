import os
from importlib.util import find_spec

import pytest

from llmpy import kernels
from tests.kernels.numerics import BFLOAT16, Arrays
from tests.kernels.on_device import OnDevice


@pytest.fixture(scope="session", params=kernels.BACKENDS)
def backend(request):
    """Every backend in turn. The reference is among them: in float32 it must agree with itself in float64."""
    if request.param == "cuda":
        if find_spec("triton") is None:
            pytest.skip("the GPU's kernels need Triton")
        return OnDevice(kernels.load("cuda"))
    module = kernels.load(request.param)
    if request.param == "cpu" and "LLMPY_ISA" not in os.environ:  # test_isa.py needs a few kernels only
        module.compile_all()
    return module


@pytest.fixture(scope="session")
def narrow():
    """The backend with bfloat16, its kernels for that compiled."""
    module = kernels.load("cpu")
    if "LLMPY_ISA" not in os.environ:
        module.compile_all(precision="bfloat16")
    return module


@pytest.fixture
def halves():
    """Arrays as a run in bfloat16 has them: activations in bfloat16, parameters in float32."""
    made = Arrays(activations=BFLOAT16)
    yield made
    made.check()


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
