"""Processes that measure, seen from outside: what they say as they say it, and an end to those that take too long."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmpy.bench.timing import ENVIRONMENT, ROOT
from llmpy.utils.progress_bar import duration

TICK = 0.5  # seconds after which something is shown although nothing was said


@dataclass(frozen=True)
class Task:
    """`target` is `module:function`, which gives rows; `environment` is added to ours."""

    name: str
    target: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """The rows of a task until its end or its timeout; `problem` describes a failure."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None


class _Child:
    def __init__(self, task: Task, said: queue.Queue[tuple[_Child, str | None]]) -> None:
        self.outcome, self.over = Outcome(task.name), False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        search = os.pathsep.join(filter(None, [str(ROOT), ENVIRONMENT.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.child", task.target, json.dumps(task.arguments)],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=ENVIRONMENT | {"PYTHONPATH": search} | task.environment,
            start_new_session=True,  # torch.compile has processes of its own, which end with it
        )
        self._listener = threading.Thread(target=self._listen, args=(said,), daemon=True)
        self._listener.start()

    def _listen(self, said: queue.Queue[tuple[_Child, str | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said.put((self, line))
        said.put((self, None))

    def hear(self, line: str | None) -> bool:
        """Is it a row?"""
        if line is None:
            self.over = True
            if self._process.wait() and self.outcome.problem is None:
                self.outcome.problem = self._last_words()
            return False
        row: dict[str, Any] = json.loads(line)
        if "problem" in row and len(row) == 1:
            self.outcome.problem = row["problem"]
            return False
        self.outcome.rows.append(row)
        return True

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return "; ".join([f"it ended with status {self._process.returncode}", *lines[-1:]])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


def run(
    tasks: Sequence[Task],
    seconds: float,
    heard: Callable[[dict[str, Any]], None] = lambda row: None,
    tick: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """The tasks, all at once, and what they said; those that are not done after so many seconds are ended.

    `heard` is called with every row, `tick` now and then.
    """
    said: queue.Queue[tuple[_Child, str | None]] = queue.Queue()
    end, children = time.monotonic() + seconds, []
    try:
        for task in tasks:
            children.append(_Child(task, said))
        while not all(child.over for child in children) and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                child, line = said.get(timeout=min(left, TICK))
                if child.hear(line):
                    heard(child.outcome.rows[-1])
            tick()
        for child in children:
            if not child.over:
                child.outcome.problem = f"stopped after {duration(seconds)}, which was all of its time"
    finally:
        for child in children:
            child.close()
    return [child.outcome for child in children]
