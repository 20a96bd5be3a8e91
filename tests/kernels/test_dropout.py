import numpy as np
import pytest

from llmpy.kernels import cpu, reference
from tests.kernels.numerics import compare

KEY = 0x9E3779B97F4A7C15


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 131), (2 * 4096 + 3,)])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.99])
def test_it_agrees_with_the_reference(backend, arrays, shape, probability):
    x, residual = arrays.normal(*shape), arrays.normal(*shape)
    compare(backend, "dropout", arrays.empty(*shape), x, probability, KEY)
    compare(backend, "dropout", arrays.empty(*shape), x, probability, KEY, residual=residual)
    compare(backend, "dropout", x, x, probability, 0, residual=residual)
    compare(backend, "dropout", x, x, probability, 2**64 - 1)


def test_backends_drop_the_same(arrays):
    x = np.ones((301, 129), np.float32)
    ours, theirs = arrays.empty(301, 129), arrays.empty(301, 129)
    cpu.dropout(ours, x, 0.3, KEY)
    reference.dropout(theirs, x, 0.3, KEY)
    np.testing.assert_array_equal(ours == 0, theirs == 0)


def test_masks_are_as_random_as_they_must_be():
    """As many zeros as asked for; no two keys, rows or neighbours that follow one another."""
    p, n = 0.3, 400 * 500

    def mask(key):
        y = np.empty((400, 500), np.float32)
        cpu.dropout(y, np.ones_like(y), p, key)
        return (y == 0).astype(float) - p

    masks = [mask(key) for key in (0, 1, 2, 2**32, 2**32 + 1, KEY, KEY ^ 1)]
    deviation, correlation = (p * (1 - p) / n) ** 0.5, p * (1 - p) / n**0.5
    for i, one in enumerate(masks):
        assert abs(one.mean()) < 4 * deviation
        for other in (*masks[:i], np.roll(one, 1, 0), np.roll(one, 1, 1)):
            assert abs((one * other).mean()) < 4 * correlation


def test_what_is_kept_makes_up_for_what_is_dropped(backend, arrays):
    x, y = np.ones((2, 77), np.float32), arrays.empty(2, 77)
    backend.dropout(y, x, 0.2, KEY)
    assert set(np.unique(y)) == {0.0, np.float32(1.25)}
