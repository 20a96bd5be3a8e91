"""The GPU's kernels of rows in bfloat16, against the reference in float64; float32 is tested beside other backends."""

import numpy as np
import pytest

pytest.importorskip("triton")

from llmpy import kernels
from llmpy.kernels.cuda.runtime.array import DeviceArray
from tests.kernels import calls
from tests.kernels.numerics import BFLOAT16, Arrays, compare
from tests.kernels.on_device import OnDevice
from tests.kernels.test_dropout import KEY
from tests.kernels.test_layernorm import SHAPES
from tests.kernels.test_rope import SHAPES as ROPE_SHAPES
from tests.kernels.test_rope import angles
from tests.kernels.test_swiglu import SHAPES as SWIGLU_SHAPES

CUDA = OnDevice(kernels.load("cuda"))
WIDE = [*SHAPES, (3, 8192), (2, 8191), (1, 9001)]  # one row to a program, and longer ones than it is tuned for
OPERATIONS = (
    *("embedding_forward", "embedding_backward", "layernorm_forward", "layernorm_backward", "rmsnorm_forward"),
    *("rmsnorm_backward", "swiglu_forward", "swiglu_backward", "rope_forward", "rope_backward", "dropout"),
    *("adamw", "global_norm"),
)


@pytest.mark.parametrize(("N", "C"), WIDE)
def test_layernorm(halves, N, C):
    x, w, b, mean, rstd = halves.acts(N, C), halves.normal(C), halves.normal(C), halves.empty(N), halves.empty(N)
    compare(CUDA, "layernorm_forward", halves.empty_acts(N, C), mean, rstd, x, w, b, floor=1e-6)
    gradients = halves.acts(N, C), halves.normal(C), halves.normal(C)
    compare(CUDA, "layernorm_backward", *gradients, halves.acts(N, C), x, w, mean, rstd, floor=1e-6)


@pytest.mark.parametrize(("N", "C"), WIDE)
def test_rmsnorm(halves, N, C):
    x, w, rstd = halves.acts(N, C), halves.normal(C), halves.empty(N)
    compare(CUDA, "rmsnorm_forward", halves.empty_acts(N, C), rstd, x, w, 1e-6, floor=1e-6)
    compare(CUDA, "rmsnorm_backward", halves.acts(N, C), halves.normal(C), halves.acts(N, C), x, w, rstd, floor=1e-6)


@pytest.mark.parametrize(("N", "H"), [*SWIGLU_SHAPES, (3, 4099)])
def test_swiglu(halves, N, H):
    gateup, dy = halves.acts(N, 2 * H, scale=2), halves.acts(N, H)
    compare(CUDA, "swiglu_forward", halves.empty_acts(N, H), gateup)
    compare(CUDA, "swiglu_backward", halves.empty_acts(N, 2 * H), halves.empty_acts(N, H), dy, gateup)
    compare(CUDA, "swiglu_backward", gateup, dy, dy, gateup)


@pytest.mark.parametrize("made", ["arrays", "halves"])
def test_gate_and_up_may_be_apart(request, made):
    made = request.getfixturevalue(made)
    wide = made.acts(7, 40)  # rows of a larger matrix, and an array of its own
    compare(CUDA, "swiglu_forward", made.empty_acts(7, 33), wide[:, 4:37], made.acts(7, 33))


@pytest.mark.parametrize("operation", ["rope_forward", "rope_backward"])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("B", "T", "NH", "NKV", "hs"), [*ROPE_SHAPES, (2, 3, 5, 1, 128), (1, 2, 3, 1, 80)])
def test_rope(halves, operation, B, T, NH, NKV, hs, interleaved):
    cos, sin = angles(halves, T + 7, hs)
    for x in halves.qkv(B, T, NH, NKV, hs):
        compare(CUDA, operation, x, cos, sin, interleaved)
    positions = np.arange(B, dtype=np.int32)[::-1].copy() * 3
    compare(CUDA, operation, halves.acts(B, T, NH, hs), cos, sin, interleaved, positions)


@pytest.mark.parametrize("shape", [(1,), (2, 7, 131), (70001,)])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.99])
def test_dropout(halves, shape, probability):
    x, residual = halves.acts(*shape), halves.acts(*shape)
    compare(CUDA, "dropout", halves.empty_acts(*shape), x, probability, KEY, residual=residual)
    compare(CUDA, "dropout", residual, x, probability, KEY ^ 1, residual=residual)
    compare(CUDA, "dropout", x, x, probability, KEY)


@pytest.mark.parametrize("key", [0, 1, 2**31, KEY, 2**64 - 1])
def test_a_key_on_the_device_drops_the_same(key):
    x, y, again = (DeviceArray.of(np.ones((3, 67), np.float32)) for _ in range(3))
    keys = DeviceArray.of(np.array([5, key], np.uint64))
    kernels.load("cuda").dropout(y, x, 0.4, key)
    kernels.load("cuda").dropout(again, x, 0.4, keys[1:])
    assert np.unique(y.numpy()).size == 2
    np.testing.assert_array_equal(again.numpy(), y.numpy())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("activations", [np.float32, BFLOAT16])
def test_the_same_bits_again(operation, activations):
    one, other = (calls.make(operation, Arrays(activations=activations)).on(CUDA) for _ in range(2))
    assert [x.tobytes() for x in one] == [x.tobytes() for x in other]
