"""Contestants measured in turn: each is a process that works only when it is its turn; medians of many rounds count.

A disturbance (another program, a changing clock rate) then hits all of them alike, and the ratio stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmpy.errors import UserError

QUICK = 0.2  # seconds: in a turn, work shorter than this is repeated for so long, with warm caches
PAUSE = 0.06  # seconds between turns, in which the idle threads of the one before stop spinning
# As it was before our kernels set what suits them (how long OpenMP spins): a peer must be as its own makers left it.
ENVIRONMENT = dict(os.environ)
ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """The process of a contestant. `environment` is added to ours: thread counts, a preloaded allocator; `python` is
    the interpreter to run in, None for ours."""

    def __init__(self, name: str, environment: dict[str, str] | None = None, python: str | None = None) -> None:
        self.name, self.peak_mb = name, 0.0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        search = os.pathsep.join(filter(None, [str(ROOT), ENVIRONMENT.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", "llmpy.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=ENVIRONMENT | {"PYTHONPATH": search} | (environment or {}),
        )

    def prepare(self, target: str, warm_up: int = 2, **arguments: Any) -> None:
        """Build the work, `module:function` with these arguments, and do it a few times."""
        self._ask({"prepare": target, "arguments": arguments, "warm_up": warm_up})

    def turn(self) -> float:
        """Seconds that the work took, now."""
        return float(self._ask({"quick": QUICK})["seconds"])

    def result(self) -> Any:
        """Runs the job once and returns its result, which must fit JSON."""
        return self._ask({"result": True})["result"]

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(command), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        if not line:
            raise UserError(f"{self.name} ended without an answer ({self._last_words()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(f"{self.name}: {answer['error']}")
        self.peak_mb = answer["peak_mb"]
        return answer

    def _last_words(self) -> str:
        """Returns how the process ended, and its last line on stderr."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"signal {-status}: was there too little memory?" if status < 0 else f"exit status {status}"
        return "; ".join([how, *lines[-1:]])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def seconds_each(work: Callable[[], tuple[float, int]]) -> float:
    """Mean seconds of one item. `work` returns (seconds, number of items) and is repeated for QUICK seconds, at least
    once."""
    seconds, things = work()
    while seconds < QUICK:
        more, done = work()
        seconds, things = seconds + more, things + done
    return seconds / things


class Contestant(Protocol):
    """A contestant of a comparison. A turn gives one figure, for a Worker its seconds; medians are compared."""

    def turn(self) -> float: ...


class OwnClock:
    """A worker whose work measures itself: a turn gives what the work returns."""

    def __init__(self, process: Worker) -> None:
        self._process = process

    def turn(self) -> float:
        return float(self._process.result())


@contextlib.contextmanager
def worker(name: str, environment: dict[str, str] | None = None, python: str | None = None) -> Iterator[Worker]:
    """A worker that is gone when the block ends."""
    process = Worker(name, environment, python)
    try:
        yield process
    finally:
        process.close()


def interleave(
    contestants: Sequence[Contestant], rounds: int, advance: Callable[[], None] = lambda: None
) -> list[float]:
    """The median of each contestant's turns; see `turns`."""
    return [statistics.median(numbers) for numbers in turns(contestants, rounds, advance)]


def turns(
    contestants: Sequence[Contestant], rounds: int, advance: Callable[[], None] = lambda: None
) -> list[list[float]]:
    """Returns the figures of each contestant over all rounds; the order is reversed from round to round.

    `advance` is called after every turn.
    """
    given: list[list[float]] = [[] for _ in contestants]
    for round_number in range(rounds):
        order = range(len(contestants)) if round_number % 2 == 0 else reversed(range(len(contestants)))
        for i in order:
            time.sleep(PAUSE)
            given[i].append(contestants[i].turn())
            advance()
    return given


def comparison(name: str, ours: float, theirs: float) -> dict[str, Any]:
    """Returns the entries of a comparison of two times in seconds: both times, and the ratio ours / theirs."""
    return {
        "name": name,
        "ours_ms": milliseconds(ours),
        "peer_ms": milliseconds(theirs),
        "ratio": round(ours / theirs, 4),
    }


def milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 4)
