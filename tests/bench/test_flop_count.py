"""The work that is counted for a call: against counts by hand, and for every operation of the contract."""

import inspect

import numpy as np
import pytest

from llmpy.bench.flop_count import work_of
from llmpy.kernels import OPERATIONS, reference
from tests.kernels import calls
from tests.kernels.numerics import Arrays

N, OC, C = 7, 5, 3


def zeros(*shape):
    return np.zeros(shape, np.float32)


def work(operation, *args, **kwargs):
    """Of a call with these arguments, as the contract declares them."""
    bound = inspect.signature(getattr(reference, operation)).bind(*args, **kwargs)
    bound.apply_defaults()
    return work_of(operation, bound.arguments)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_the_contract_has_work_to_do(operation):
    call = calls.make(operation, Arrays())
    found = work(operation, *call.arguments, **call.options)
    assert found.label.startswith(operation)
    has_products = operation.startswith(("linear", "attention_f", "attention_b", "classifier"))
    assert (found.flops > 0) == has_products
    written = sum(call.arguments[i].nbytes for i in call.outputs)
    everything = sum(x.nbytes for x in call.arguments if isinstance(x, np.ndarray))
    assert found.bytes > 0
    if not operation.startswith("embedding"):  # of a table only some rows are read or written
        assert written <= found.bytes <= 2 * everything + sum(getattr(x, "nbytes", 0) for x in call.options.values())


def test_a_linear_layer():
    y, x, w, b = zeros(N, OC), zeros(N, C), zeros(OC, C), zeros(OC)
    plain = work("linear_forward", y, x, w)
    assert plain.label == "linear_forward 5 x 3"
    assert plain.flops == 2 * N * OC * C
    assert plain.bytes == 4 * (N * OC + N * C + OC * C)
    fused = work("linear_forward", y, x, w, b, residual=zeros(N, OC))
    assert fused.flops == plain.flops
    assert fused.bytes == plain.bytes + 4 * (OC + N * OC)


def test_the_gradients_of_a_linear_layer():
    dx, dw, db, dy, x, w = zeros(N, C), zeros(OC, C), zeros(OC), zeros(N, OC), zeros(N, C), zeros(OC, C)
    added = work("linear_backward", dx, dw, db, dy, x, w)
    assert added.label == "linear_backward 5 x 3"
    assert added.flops == 2 * 2 * N * OC * C
    written = work("linear_backward", dx, dw, db, dy, x, w, accumulate=False)
    assert added.bytes - written.bytes == dw.nbytes
    assert work("linear_backward", None, dw, db, dy, x, w).flops == 2 * N * OC * C


def test_weights_packed_in_bfloat16_count_two_bytes_a_number():
    class Packed:
        shape = (OC, C)

    y, x = zeros(N, OC), zeros(N, C)
    assert work("linear_forward", y, x, Packed()).bytes == y.nbytes + x.nbytes + 2 * OC * C


@pytest.mark.parametrize("T", [1, 2, 9])
def test_attention_counts_the_pairs_that_it_may_see(T):
    B, NH, NKV, hs = 2, 4, 2, 3
    pairs = sum(1 for query in range(T) for key in range(T) if key <= query)
    q, k, y, lse = zeros(B, T, NH, hs), zeros(B, T, NKV, hs), zeros(B, T, NH, hs), zeros(B, NH, T)
    forward = work("attention_forward", y, lse, q, k, k)
    assert forward.flops == 2 * 2 * B * NH * hs * pairs
    assert forward.bytes == 4 * (2 * B * T * NH * hs + 2 * B * T * NKV * hs + B * NH * T)
    assert work("attention_backward", q, k, k, y, q, k, k, y, lse).flops == 5 * 2 * B * NH * hs * pairs


def test_the_head_makes_its_logits_once():
    V, targets = 11, np.zeros(N, np.int32)
    losses, x, w, logits = zeros(N), zeros(N, C), zeros(V, C), zeros(2, V)
    assert work("classifier_forward", losses, x, w, targets, logits).flops == 2 * N * V * C
    backward = work("classifier_backward", losses, zeros(N, C), zeros(V, C), x, w, targets, 1.0, logits)
    assert backward.flops == 3 * 2 * N * V * C


def test_adamw_moves_28_bytes_a_parameter():
    p, g, m, v = (zeros(13) for _ in range(4))
    assert work("adamw", p, g, m, v, 1e-3, 0.9, 0.95, 1e-8, 0.1, 1, 1.0).bytes == 28 * 13


def test_an_embedding_moves_the_rows_that_it_needs():
    B, T = 2, 3
    rows = 4 * B * T * C
    tokens = np.zeros((B, T), np.int32)
    forward = work("embedding_forward", zeros(B, T, C), tokens, zeros(100, C), zeros(50, C))
    assert forward.bytes == 2 * rows + rows // B + tokens.nbytes
    backward = work("embedding_backward", zeros(100, C), zeros(50, C), zeros(B, T, C), tokens)
    assert backward.bytes == 3 * rows + 2 * rows // B + tokens.nbytes


def test_what_is_not_known_reads_its_arrays():
    found = work_of("rotate", {"x": zeros(3), "y": zeros(4), "times": 2})
    assert (found.label, found.flops, found.bytes) == ("rotate", 0, 28)
