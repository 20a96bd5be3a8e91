"""The operations of Llama on bfloat16 activations: what float32 gives for the same numbers, rounded once."""

import ml_dtypes
import numpy as np
import pytest

from llmpy.kernels import cpu, reference
from tests.kernels import calls
from tests.kernels.numerics import Arrays, assert_agree

ROUNDING = 2**-8  # of a number that is rounded to 8 bits
ACTIVATIONS = {  # which arguments are
    "rmsnorm_forward": (0, 2),
    "rmsnorm_backward": (0, 2, 3),
    "swiglu_forward": (0, 1),
    "swiglu_backward": (0, 1, 2, 3),
    "rope_forward": (0,),
    "rope_backward": (0,),
    "dropout": (0, 1, "residual"),
}


@pytest.mark.parametrize("operation", ACTIVATIONS)
def test_results_are_those_of_float32_rounded_once(operation):
    call, activations = calls.make(operation, Arrays()), ACTIVATIONS[operation]
    cpu.compile_all(precision="bfloat16")

    def arguments(dtype):
        def convert(place, x):
            if not isinstance(x, np.ndarray) or x.dtype != np.float32:
                return x
            return x.astype(ml_dtypes.bfloat16).astype(dtype) if place in activations else x.astype(dtype)

        given = [convert(i, x) for i, x in enumerate(call.arguments)]
        return given, {name: convert(name, x) for name, x in call.options.items()}

    exact, exact_options = arguments(np.float64)
    getattr(reference, operation)(*exact, **exact_options)
    rounded, options = arguments(np.float32)
    for i in activations:
        where = options if isinstance(i, str) else rounded
        where[i] = where[i].astype(ml_dtypes.bfloat16)
    getattr(cpu, operation)(*rounded, **options)
    for i in call.outputs:
        tolerance = ROUNDING if i in activations else 1e-5
        assert_agree(rounded[i].astype(np.float64), exact[i], tolerance)
