"""A decoder beside the logits of a whole forward pass."""

import numpy as np

from tests.kernels.numerics import relative_error


def one(*numbers):
    return np.array(numbers, np.int32)


def check_decoding(decoder, tokens, whole, tolerance=1e-5):
    """A text of tokens [T], its first part read and the others given one by one, has the logits [T, V] of the whole."""
    T, first = len(tokens), 20
    assert relative_error(decoder.prefill(tokens[:first]), whole[first - 1]) < tolerance
    for position in range(first, T):
        logits = decoder.decode(tokens[position : position + 1], one(position), one(0))
        assert relative_error(logits[0], whole[position]) < tolerance
    assert relative_error(decoder.prefill(tokens[:1]), whole[0]) < tolerance  # and anew
    assert relative_error(decoder.prefill(tokens[1:], start=1), whole[-1]) < tolerance
