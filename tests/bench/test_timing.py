"""The processes that are measured, and how their turns are taken."""

import os
import signal
import time

import pytest

from llmpy import UserError
from llmpy.bench import peers, timing


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "QUICK", 0.01)


def sleeper(seconds):
    return lambda: time.sleep(seconds)


def printer():
    print("libraries talk")
    return lambda: print("all the time")


def counter():
    done = []

    def work():
        done.append(1)
        return {"done": len(done)}

    return work


def broken():
    raise ValueError("cannot work\nfor a reason that takes two lines")


def dying():
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def environment_of(name):
    return sleeper(float(os.environ[name]))


TARGET = "tests.bench.test_timing:"


def test_work_is_timed_whether_it_is_long_or_short():
    with timing.worker("someone") as process:
        process.prepare(TARGET + "sleeper", seconds=0.05)
        assert 0.05 <= process.turn() < 1
        process.prepare(TARGET + "sleeper", seconds=0.001)  # the same process may be given other work
        assert 0.001 <= process.turn() < 0.05
        assert process.peak_mb > 1


def test_what_the_work_returns_can_be_asked_for():
    with timing.worker("someone") as process:
        process.prepare(TARGET + "counter", warm_up=1)
        assert process.result() == {"done": 2}
        assert process.result() == {"done": 3}


def test_the_environment_reaches_the_worker():
    with timing.worker("someone", {"LLMPY_TEST_SECONDS": "0.02"}) as process:
        process.prepare(TARGET + "environment_of", name="LLMPY_TEST_SECONDS")
        assert process.turn() >= 0.02


def test_what_a_library_prints_is_not_an_answer():
    with timing.worker("someone") as process:
        process.prepare(TARGET + "printer")
        assert process.turn() >= 0


def test_a_worker_that_fails_says_why_in_one_line():
    with timing.worker("someone") as process:
        with pytest.raises(UserError, match=r"^someone: ValueError: cannot work$"):
            process.prepare(TARGET + "broken")
        process.prepare(TARGET + "sleeper", seconds=0)  # and goes on


def test_a_worker_that_dies_is_missed_at_once():
    with timing.worker("someone") as process:
        process.prepare(TARGET + "dying", warm_up=0)
        with pytest.raises(UserError, match=r"someone ended without an answer.*signal 9: was there too little memory"):
            process.turn()


def test_a_worker_is_gone_after_its_block():
    with timing.worker("someone") as process:
        process.prepare(TARGET + "sleeper", seconds=0)
    assert process._process.poll() is not None


class Recorded:
    def __init__(self, name, times, log):
        self.name, self.times, self.log = name, iter(times), log

    def turn(self):
        self.log.append(self.name)
        return next(self.times)


def test_turns_alternate_and_the_median_counts():
    log, advanced = [], []
    a, b = Recorded("a", [3, 1, 2], log), Recorded("b", [30, 10, 1000], log)
    assert timing.interleave([a, b], 3, lambda: advanced.append(1)) == [2, 30]
    assert log == ["a", "b", "b", "a", "a", "b"]
    assert len(advanced) == 6


def test_a_comparison_is_ours_to_theirs():
    assert timing.comparison("x", 0.5, 2.0) == {"name": "x", "ours_ms": 500.0, "peer_ms": 2000.0, "ratio": 0.25}


@pytest.fixture
def machine_with(monkeypatch):
    """A machine where PyTorch and tcmalloc are installed, or not."""

    def make(torch, tcmalloc):
        monkeypatch.setattr(peers, "version_of", lambda package: "2.13.0" if torch else None)
        monkeypatch.setattr(peers, "find_tcmalloc", lambda: "/lib/tc.so" if tcmalloc else None)

    return make


@pytest.mark.parametrize(
    ("mode", "tcmalloc", "kinds"),
    [
        ("best", True, ["tuned"]),
        ("best", False, ["installed"]),
        ("installed", True, ["installed"]),
        ("tuned", True, ["tuned"]),
        ("all", True, ["installed", "tuned"]),
        ("all", False, ["installed"]),
    ],
)
def test_which_pytorch_is_the_peer(machine_with, mode, tcmalloc, kinds):
    machine_with(torch=True, tcmalloc=tcmalloc)
    found = peers.torch_peers(mode)
    assert [peer.name for peer in found] == [
        f"PyTorch {kind}, {way}" for kind in kinds for way in ("eager", "compiled")
    ]
    for peer in found:
        assert peer.environment.get("LD_PRELOAD") == ("/lib/tc.so" if "tuned" in peer.name else None)
    assert [peer.compiled for peer in peers.torch_peers(mode, compiled=False)] == [False] * len(kinds)


def test_what_is_missing_is_said(machine_with):
    machine_with(torch=True, tcmalloc=False)
    with pytest.raises(UserError, match=r"tuned with libtcmalloc_minimal.so.4, which is not here: install it"):
        peers.torch_peers("tuned")
    machine_with(torch=False, tcmalloc=True)
    with pytest.raises(
        UserError, match=r"PyTorch is not installed here: leave out --against torch, or pip install torch"
    ):
        peers.torch_peers("best")
