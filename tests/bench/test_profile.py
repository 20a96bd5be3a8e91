"""The profile of a step: what is recorded, how it is told, and the ceilings that it is compared with."""

from types import SimpleNamespace

import numpy as np
import pytest

from llmpy import kernels
from llmpy.bench import profile, roofline
from llmpy.bench.profile import REST, Line, ProfiledKernels
from llmpy.kernels import OPERATIONS, reference

MACHINE = roofline.Ceilings(flops=1e12, bandwidth=1e10)


def call(backend, rows=4):
    """A norm and two linear layers of different shapes."""
    x, y, y2 = np.ones((rows, 3), np.float32), np.empty((rows, 3), np.float32), np.empty((rows, 5), np.float32)
    mean, rstd, one = np.empty(rows, np.float32), np.empty(rows, np.float32), np.ones(3, np.float32)
    w, w2 = np.ones((3, 3), np.float32), np.ones((5, 3), np.float32)
    backend.layernorm_forward(y, mean, rstd, x, one, one)
    backend.linear_forward(y, x, w)
    backend.linear_forward(y, x, w, b=one)
    backend.linear_forward(y2, x, w2)
    return y2


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_calls_are_passed_on_and_recorded(backend):
    observed = ProfiledKernels(kernels.load(backend))
    np.testing.assert_array_equal(call(observed), call(kernels.load(backend)))
    lines = {line.operation: line for line in observed.lines()}
    assert list(lines) == ["layernorm_forward", "linear_forward 3 x 3", "linear_forward 5 x 3"]
    assert [line.calls for line in lines.values()] == [1, 2, 1]
    assert [line.flops for line in lines.values()] == [0, 2 * (2 * 4 * 3 * 3), 2 * 4 * 5 * 3]
    assert all(line.seconds > 0 for line in lines.values())


def test_arguments_are_named_as_the_reference_names_them_where_the_backend_does_not_tell():
    def hands_on(*arguments):
        return reference.linear_forward(*arguments)

    def knows_more(g, unit=1.0):
        return reference.global_norm(g) * unit

    backend = SimpleNamespace(__name__="other", linear_forward=hands_on, global_norm=knows_more)
    observed = ProfiledKernels(backend)
    one = np.ones((2, 2), np.float32)
    observed.linear_forward(np.empty((2, 2), np.float32), one, one)
    observed.global_norm(one[0], unit=2.0)
    assert [(line.operation, line.flops) for line in observed.lines()] == [
        ("linear_forward 2 x 2", 16),
        ("global_norm", 0),
    ]


def test_it_has_what_the_backend_has():
    observed = ProfiledKernels(reference)
    assert observed.__name__ == reference.__name__
    assert all(callable(getattr(observed, operation)) for operation in OPERATIONS)
    assert observed.linear_forward is observed.linear_forward
    assert observed.global_norm(np.full(4, 2, np.float32)) == 4
    assert observed.__all__ is reference.__all__
    with pytest.raises(AttributeError, match="fly"):
        _ = observed.fly


def test_shares_add_up_and_the_longest_comes_first():
    lines = [Line("short", 3, 0.1, 0, 10**8), Line("long", 1, 0.5, 2 * 10**11, 10**9)]
    told = profile.table(0.8, lines, MACHINE)
    rows = told["operations"]
    assert [row["operation"] for row in rows] == ["long", "short", REST]
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-4)
    assert rows[2]["ms"] == pytest.approx(200)
    assert told["step_ms"] == 800
    assert told["ceilings"] == {"gflops": 1000.0, "gb_per_s": 10.0}


def test_what_binds_is_what_an_operation_is_measured_by():
    lines = [Line("product", 1, 0.4, 2 * 10**11, 10**9), Line("copy", 1, 0.2, 0, 10**9)]
    product, copy, _ = profile.table(1.0, lines, MACHINE)["operations"]
    assert (product["bound"], product["gflops"], product["share_of_ceiling"]) == ("products", 500, 0.5)
    assert (copy["bound"], copy["gb_per_s"], copy["share_of_ceiling"]) == ("memory", 5, 0.5)


def test_the_floor_is_the_longer_of_products_and_memory():
    assert MACHINE.floor(1e12, 1e9) == 1
    assert MACHINE.floor(1e11, 2e10) == 2


def test_the_ceilings_are_measured_in_a_process_of_their_own(monkeypatch):
    monkeypatch.setattr(roofline, "SECONDS", 0.01)
    found = roofline.ask("float32", 1)
    assert found.flops > 1e8
    assert found.bandwidth > 1e8


@pytest.mark.parametrize("threads", [1, 2])
def test_reading_is_measured_over_all_numbers(monkeypatch, threads):
    monkeypatch.setattr(roofline, "STREAM_FLOATS", 4099)
    kernels.start("cpu")
    assert roofline.read_bandwidth(threads, 0.001) > 1e6
    x, totals = np.arange(threads * 12, dtype=np.float32).reshape(threads, 12), np.empty(threads, np.float32)
    roofline._add_up(x, totals)
    np.testing.assert_array_equal(totals, x.sum(1))


def test_where_numpy_makes_the_products_its_library_is_the_ceiling(monkeypatch):
    monkeypatch.setattr(roofline, "SQUARE", 32)
    assert roofline.numpy_flops(0.001) > 1e6
