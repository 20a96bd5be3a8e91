import json

import pytest

pytest.importorskip("triton")

from llmpy.errors import UserError
from llmpy.kernels.cuda.gemm import autotune, cublaslt
from llmpy.kernels.cuda.gemm.autotune import ByLibrary, InTiles, fastest, multiply, set_gemm, tuning
from llmpy.kernels.cuda.gemm.tile_sizes import Tiles
from llmpy.kernels.cuda.runtime import device
from tests.kernels.cuda.fake_cublaslt import FakeCublasLt
from tests.kernels.cuda.products import Case
from tests.kernels.numerics import BFLOAT16

INTERPRETED = device.current()


class Streaming:
    stream = 0

    def __getattr__(self, name):
        return getattr(INTERPRETED, name)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch, tmp_path):
    """Nothing chosen before, nothing left behind."""
    monkeypatch.setenv("LLMPY_CACHE_DIR", str(tmp_path))
    set_gemm("auto")
    yield
    monkeypatch.undo()
    set_gemm("auto")


@pytest.fixture
def library(monkeypatch):
    fake = FakeCublasLt()
    monkeypatch.setattr(cublaslt, "library", lambda: fake)
    monkeypatch.setattr(device, "current", Streaming)
    return fake


def call(case):
    c, a, b, bias, extra = case.arrays
    layout, accumulate, epilogue = case.options
    multiply(c, a, b, layout, accumulate, epilogue, bias, extra)


def way_of(case):
    (way,) = [way for product, way in autotune._ways.items() if product.key == case.product.key]
    return way


class Clock:
    """Of what is timed, in order, the number `winner` is the fastest."""

    def __init__(self, winner):
        self.winner, self.timed = winner, 0

    def __call__(self, function):
        function()
        self.timed += 1
        return 1.0 if self.timed - 1 == self.winner else 2.0


def test_the_fastest_that_runs_is_kept():
    times = {"slow": 3.0, "broken": 0.0, "fast": 1.0, "as fast": 1.0}
    ran = []

    def run(way):
        ran.append(way)
        if way == "broken":
            raise RuntimeError("out of shared memory")

    def timer(function):
        function()
        return times[ran[-1]]

    assert fastest(list(times), run, timer) == "fast"
    assert ran == list(times)
    with pytest.raises(RuntimeError, match="out of shared memory"):
        fastest(["broken"], run, timer)


@pytest.mark.parametrize("winner", [0, 2, 3])
def test_tuning_times_the_library_and_the_tiles(library, arrays, winner):
    case = Case(arrays, "forward", 8, 16, 24, BFLOAT16)
    clock = Clock(winner)
    with tuning(clock):
        call(case)
        call(case)
    assert clock.timed == 4, "three algorithms and, under the interpreter, one cut into tiles: once"
    way = way_of(case)
    assert isinstance(way, ByLibrary if winner < 3 else InTiles)
    if winner < 3:
        assert int.from_bytes(way.algorithm[:8], "little") == 1000 + winner
    case.check()
    call(case)
    assert clock.timed == 4


def test_sums_of_columns_are_tried_fused_and_apart(library, arrays):
    clock = Clock(4)
    case = Case(arrays, "dw and db added", 8, 16, 24, BFLOAT16)
    with tuning(clock):
        call(case)
    assert clock.timed == 7
    assert way_of(case).fused is False
    again = Case(arrays, "dw and db added", 8, 16, 24, BFLOAT16)
    call(again)  # what tuning added up means nothing; this does
    again.check()


def test_what_was_fastest_is_remembered(library, arrays):
    by_library, in_tiles = Case(arrays, "bias and gelu", 8, 16, 24, BFLOAT16), Case(arrays, "dw", 8, 16, 24, BFLOAT16)
    with tuning(Clock(1)):
        call(by_library)
    with tuning(Clock(3)):
        call(in_tiles)
    set_gemm("auto")  # forgets what is not in the file

    def never(function):
        raise AssertionError("timed again")

    with tuning(never):
        call(by_library)
        call(in_tiles)
    assert way_of(by_library).algorithm[:2] == (1001).to_bytes(2, "little")
    assert isinstance(way_of(in_tiles), InTiles)
    added = Case(arrays, "dw added", 8, 16, 24, BFLOAT16)  # goes the way of what is written
    call(added)
    added.check()
    assert way_of(added) == way_of(in_tiles)


@pytest.mark.parametrize("damage", ["{", "[]", '{"versions": [0], "ways": {}}', '{"versions": 3}'])
def test_a_file_of_other_libraries_or_a_damaged_one_is_measured_again(library, arrays, tmp_path, damage):
    case = Case(arrays, "forward", 8, 16, 24, BFLOAT16)
    with tuning(Clock(2)):
        call(case)
    (path,) = (tmp_path / "products").iterdir()
    assert json.loads(path.read_text())["ways"]
    path.write_text(damage)
    set_gemm("auto")
    clock = Clock(0)
    with tuning(clock):
        call(case)
    assert clock.timed == 4


def test_without_tuning_the_library_is_asked_for_its_guess(library, arrays):
    case = Case(arrays, "bias", 8, 16, 24, BFLOAT16)
    call(case)
    case.check()
    assert [made.algorithm for made in library.calls] == [1000]


def test_what_the_library_cannot_do_is_done_in_tiles(library, arrays):
    library.aligned_only = True
    set_gemm("cublas")
    case = Case(arrays, "bias", 3, 5, 7, BFLOAT16)
    call(case)
    case.check()
    assert isinstance(way_of(case), InTiles)
    with tuning(Clock(0)):
        call(case)
    assert isinstance(way_of(case), InTiles)


@pytest.mark.parametrize(("name", "kind", "count"), [("cublas", ByLibrary, 3), ("triton", InTiles, 1)])
def test_one_of_them_alone(library, arrays, name, kind, count):
    set_gemm(name)
    case, clock = Case(arrays, "bias", 8, 16, 24, BFLOAT16), Clock(0)
    with tuning(clock):
        call(case)
    assert clock.timed == count
    assert isinstance(way_of(case), kind)


def test_names_that_mean_nothing(arrays):
    with pytest.raises(UserError, match="no matrix products by 'mkl': use auto, cublas or triton"):
        set_gemm("mkl")
    with pytest.raises(UserError, match=r"cuBLASLt cannot be used .*no GPU"):
        set_gemm("cublas")
    case = Case(arrays, "bias", 8, 16, 24, BFLOAT16)
    call(case)
    assert way_of(case) == InTiles(Tiles(8, 16, 32, 1, 1))
