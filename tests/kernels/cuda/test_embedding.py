import numpy as np
import pytest

pytest.importorskip("triton")

from llmpy import kernels
from llmpy.kernels.cuda.embedding import CHUNKS, ROWS
from llmpy.kernels.cuda.primitives.sort_tokens import RUN, order_of
from llmpy.kernels.cuda.runtime.array import DeviceArray
from tests.kernels.numerics import compare
from tests.kernels.on_device import OnDevice
from tests.kernels.test_embedding import SHAPES

CUDA = OnDevice(kernels.load("cuda"))


@pytest.mark.parametrize(("B", "T", "C", "V"), SHAPES)
def test_in_bfloat16(halves, B, T, C, V):
    wte, wpe = halves.normal(V, C), halves.normal(T + 5, C)
    compare(CUDA, "embedding_forward", halves.empty_acts(B, T, C), halves.tokens(V, B, T), wte, wpe, 3)
    tokens = halves.tokens(min(V, 7), B, T)
    compare(CUDA, "embedding_backward", halves.normal(V, C), halves.normal(T + 5, C), halves.acts(B, T, C), tokens)
    compare(CUDA, "embedding_backward", halves.normal(V, C), None, halves.acts(B, T, C), tokens)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, RUN // 3), (1, RUN), (2, RUN), (5, RUN + 1)])
@pytest.mark.parametrize("V", [1, 3, 50257, 2**31 // RUN - 1])
def test_tokens_are_sorted_and_equal_ones_keep_their_order(arrays, B, T, V):
    longer = arrays.tokens(V, B, T + 1)
    longer[0, 0], longer[-1, -2] = V - 1, 0
    tokens = longer[:, :-1]  # a view, as inputs and targets of one batch may be
    order, in_order = order_of(DeviceArray.of(longer)[:, :-1])
    expected = np.argsort(tokens.reshape(-1), kind="stable")
    np.testing.assert_array_equal(order.numpy(), expected)
    np.testing.assert_array_equal(in_order.numpy(), tokens.reshape(-1)[expected])


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, (2 * CHUNKS + 3) * ROWS + 5])
@pytest.mark.parametrize("made", ["arrays", "halves"])
def test_a_token_may_be_in_many_chunks(request, made, rows):
    """All rows of one token, and one that begins and ends anywhere among others."""
    made = request.getfixturevalue(made)
    for tokens in (np.zeros((1, rows), np.int32), np.clip(np.arange(rows)[None] - 5, 0, rows - 9).astype(np.int32)):
        shuffled = made.random.permutation(tokens[0])[None]
        dwte, dx = made.normal(rows, 19), made.acts(1, rows, 19)
        compare(CUDA, "embedding_backward", dwte, None, dx, rows - 1 - shuffled)


def test_a_row_that_is_not_finite_does_not_reach_other_tokens(arrays):
    dwte, dx, tokens = arrays.normal(9, 5), arrays.normal(1, 70, 5), arrays.tokens(9, 1, 70)
    dx[0, 33] = np.nan
    CUDA.embedding_backward(dwte, None, dx, tokens)
    assert np.isnan(dwte[tokens[0, 33]]).all()
    assert np.isfinite(np.delete(dwte, tokens[0, 33], axis=0)).all()
