"""What the kernel tests share: arrays with guarded borders, gradients by differences, and when two results agree."""

from math import prod

import numpy as np

from llmpy.kernels import reference

GUARD = 67  # floats on either side: odd, so that no array of a test begins where vectors like it
SENTINEL = -12345.6789
TOLERANCE = 1e-5  # of a float32 backend against the float64 reference


class Arrays:
    """Arrays for one test. What is written past the end of one is found by `check`; what is never written stays NaN."""

    def __init__(self, seed=0, dtype=np.float32):
        self.random, self.dtype, self._buffers = np.random.default_rng(seed), dtype, []

    def empty(self, *shape):
        buffer = np.full(prod(shape) + 2 * GUARD, SENTINEL, self.dtype)
        self._buffers.append(buffer)
        inside = buffer[GUARD : len(buffer) - GUARD]
        inside[:] = np.nan
        return inside.reshape(shape)

    def normal(self, *shape, scale=1.0):
        array = self.empty(*shape)
        array[...] = self.random.standard_normal(shape) * scale
        return array

    def tokens(self, below, *shape):
        return self.random.integers(0, below, shape, dtype=np.int32)

    def qkv(self, B, T, NH, NKV, hs):
        """q [B, T, NH, hs], k and v [B, T, NKV, hs]: views of one buffer, as a model has them."""
        buffer = self.normal(B, T, (NH + 2 * NKV) * hs)
        parts = np.split(buffer, [NH * hs, (NH + NKV) * hs], axis=-1)
        return tuple(part.reshape(B, T, -1, hs) for part in parts)

    def check(self):
        sentinel = np.asarray(SENTINEL, self.dtype)
        for buffer in self._buffers:
            assert (buffer[:GUARD] == sentinel).all(), "written before the start of an array"
            assert (buffer[len(buffer) - GUARD :] == sentinel).all(), "written past the end of an array"


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
    """The same arguments in float64; an array that is passed twice stays one array."""
    copies = {}

    def copy(x):
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
            return x
        key = (x.__array_interface__["data"][0], x.shape, x.strides)
        if key not in copies:
            copies[key] = x.astype(np.float64)
        return copies[key]

    return [copy(x) for x in arguments]


def compare(kernels, operation, *arguments, tolerance=TOLERANCE, floor=0.0, scratch=None, **options):
    """Call an operation of a backend, and of the reference in float64; every array must agree afterwards.

    That covers outputs, sums, and inputs (which must be what they were). The array `scratch` may hold anything.
    """
    names = list(options)
    doubles = in_float64([*arguments, *options.values()])
    getattr(reference, operation)(
        *doubles[: len(arguments)], **dict(zip(names, doubles[len(arguments) :], strict=True))
    )
    getattr(kernels, operation)(*arguments, **options)
    for actual, expected in zip([*arguments, *options.values()], doubles, strict=True):
        if isinstance(actual, np.ndarray) and actual.dtype.kind == "f" and actual is not scratch:
            assert_agree(actual, expected, tolerance, floor)


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
