"""What the kernel tests share: arrays with guarded borders, gradients by differences, and when two results agree."""

from math import prod

import ml_dtypes
import numpy as np

from llmpy.kernels import cpu, reference
from llmpy.kernels.cpu.gemm.microkernels import BFLOAT16 as P
from llmpy.kernels.cpu.gemm.packed_weight import PACKED

BFLOAT16 = ml_dtypes.bfloat16
GUARD = 67  # numbers on either side: odd, so that no array of a test begins where vectors like it
SENTINEL = -12345.6789
TOLERANCE = 1e-5  # of a float32 backend against the float64 reference
# The same in bfloat16, of what ends in it: rounding is off by 2^-9 at most, and some of it is made of such numbers.
NARROW = 4e-3


class Arrays:
    """Arrays for one test. What is written past the end of one is found by `check`; what is never written stays NaN.

    Activations may be of another type than parameters: bfloat16, and then the weights of products are `Weight`s.
    """

    def __init__(self, seed=0, dtype=np.float32, activations=None):
        self.random, self.dtype, self._buffers = np.random.default_rng(seed), dtype, []
        self.activations = dtype if activations is None else activations

    def empty(self, *shape, dtype=None):
        buffer = np.full(prod(shape) + 2 * GUARD, SENTINEL, dtype or self.dtype)
        self._buffers.append(buffer)
        inside = buffer[GUARD : len(buffer) - GUARD]
        inside[:] = np.nan
        return inside.reshape(shape)

    def normal(self, *shape, scale=1.0, dtype=None):
        array = self.empty(*shape, dtype=dtype)
        array[...] = self.random.standard_normal(shape) * scale
        return array

    def empty_acts(self, *shape):
        return self.empty(*shape, dtype=self.activations)

    def acts(self, *shape, scale=1.0):
        return self.normal(*shape, scale=scale, dtype=self.activations)

    def weight(self, OC, C, scale=1.0):
        """What a product reads as its weight [OC, C]."""
        w = self.normal(OC, C, scale=scale)
        return self.packed(w) if self.activations == BFLOAT16 else w

    def packed(self, w, rounding=0):
        """The float32 w as a `Weight`."""
        weight = cpu.Weight(self.empty(cpu.weight_size(*w.shape), dtype=BFLOAT16), *w.shape)
        cpu.pack_weight(weight, w, rounding)
        return weight

    def tokens(self, below, *shape):
        return self.random.integers(0, below, shape, dtype=np.int32)

    def qkv(self, B, T, NH, NKV, hs):
        """q [B, T, NH, hs], k and v [B, T, NKV, hs]: views of one buffer, as a model has them."""
        buffer = self.acts(B, T, (NH + 2 * NKV) * hs)
        parts = np.split(buffer, [NH * hs, (NH + NKV) * hs], axis=-1)
        return tuple(part.reshape(B, T, -1, hs) for part in parts)

    def check(self):
        for buffer in self._buffers:
            sentinel = np.asarray(SENTINEL, buffer.dtype)
            assert (buffer[:GUARD] == sentinel).all(), "written before the start of an array"
            assert (buffer[len(buffer) - GUARD :] == sentinel).all(), "written past the end of an array"


def is_float(x):
    return isinstance(x, np.ndarray) and (x.dtype.kind == "f" or x.dtype == BFLOAT16)


def dense(weight):
    """A `Weight` [OC, C] in float64, read from its panels: both ways it is kept must be the same, with zeros around."""
    OC, C = weight.shape
    if not PACKED:
        with np.errstate(invalid="ignore"):
            return weight.numbers.astype(np.float64).reshape(OC, C)

    def unpacked(panels, rows, depth):
        turned = panels.reshape(-1, P.padded(depth) // 2, P.NR, 2).transpose(0, 2, 1, 3)
        with np.errstate(invalid="ignore"):
            whole = turned.reshape(-1, P.padded(depth)).astype(np.float64)
        assert not whole[rows:].any()
        assert not whole[:, depth:].any()
        return whole[:rows, :depth]

    by_rows = unpacked(weight.rows, OC, C)
    np.testing.assert_array_equal(by_rows, unpacked(weight.columns, C, OC).T)
    return by_rows


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def relative_error(actual, expected):
    """|actual - expected| / |expected|, L2 norms."""
    difference = rms(np.asarray(actual, np.float64) - expected)
    return difference / rms(expected) if difference else 0.0


def assert_agree(actual, expected, tolerance=TOLERANCE, floor=0.0):
    """Norm by norm within `tolerance`, each number within ten times that.

    `floor` is an error to put up with where terms cancel to about zero.
    """
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all(), "the reference itself is not finite: the test is wrong"
    assert np.isfinite(actual).all(), "not finite, or never written"
    difference = np.abs(actual - expected)
    assert rms(difference) <= max(tolerance * rms(expected), floor), (
        f"relative error {relative_error(actual, expected):.2e}"
    )
    assert (difference <= 10 * np.maximum(tolerance * (np.abs(expected) + rms(expected)), floor)).all(), (
        "a number is far off"
    )


def in_float64(arguments):
    """The same arguments in float64, a `Weight` as a matrix; an array that is passed twice stays one array."""
    copies = {}

    def copy(x):
        if isinstance(x, cpu.Weight):
            return dense(x)
        if not is_float(x):
            return x
        key = (x.__array_interface__["data"][0], x.shape, x.strides)
        if key not in copies:
            copies[key] = x.astype(np.float64)
        return copies[key]

    return [copy(x) for x in arguments]


def compare(kernels, operation, *arguments, tolerance=TOLERANCE, narrow=NARROW, floor=0.0, scratch=None, **options):
    """Call an operation of a backend, and of the reference in float64; every array must agree afterwards.

    That covers outputs, sums, and inputs (which must be what they were). `scratch` may hold anything. `narrow`
    is the tolerance of what is bfloat16.
    """
    names = list(options)
    doubles = in_float64([*arguments, *options.values()])
    getattr(reference, operation)(
        *doubles[: len(arguments)], **dict(zip(names, doubles[len(arguments) :], strict=True))
    )
    getattr(kernels, operation)(*arguments, **options)
    for actual, expected in zip([*arguments, *options.values()], doubles, strict=True):
        if is_float(actual) and actual is not scratch:
            assert_agree(actual, expected, narrow if actual.dtype == BFLOAT16 else tolerance, floor)


def numerical_gradient(function, x, step=1e-5):
    """d function() / d x by central differences, float64; `function` reads x, which is put back."""
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        value = x[i]
        x[i] = value + step
        above = function()
        x[i] = value - step
        below = function()
        x[i] = value
        gradient[i] = (above - below) / (2 * step)
    return gradient
