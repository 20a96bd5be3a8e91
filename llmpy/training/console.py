"""The screen of a training run: lines on stdout, and a progress bar on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from llmpy.utils.progress_bar import duration

LINE_SECONDS = 2.0  # between two lines on the screen when --log-every is 0
REFRESH_SECONDS = 0.2


class Screen:
    """Lines on stdout; on a terminal, a bar below them on stderr with the step, the loss, the speed and the time left.

    `log_every` N prints every N-th step's line, 0 at most one in two seconds, -1 none. A context manager.
    """

    def __init__(self, steps: int, log_every: int = 0, quiet: bool = False) -> None:
        self.steps, self.log_every, self.quiet = steps, log_every, quiet
        self._next_line = self._next_refresh = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Screen:
        if not self.quiet and sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(self, *_: object) -> None:
        self.close_bar()

    def step(self, step: int, line: str, loss: float, tokens_per_s: float, step_tokens: int) -> None:
        """A step is done."""
        now, last = time.monotonic(), step + 1 == self.steps
        if self.log_every > 0:
            due = (step + 1) % self.log_every == 0 or last
        else:
            due = self.log_every == 0 and (now >= self._next_line or last)
        if due:
            self.line(line)
            self._next_line = now + LINE_SECONDS
        if self._bar is not None and (now >= self._next_refresh or last):
            left = duration((self.steps - step - 1) * step_tokens / max(tokens_per_s, 1e-9))
            text = f"loss {loss:.3f} | {tokens_per_s:,.0f} tok/s | {left} left"
            self._bar.update(self._task, completed=step + 1, text=text)
            self._bar.refresh()
            self._next_refresh = now + REFRESH_SECONDS

    def line(self, text: str) -> None:
        """A line on stdout, above the bar."""
        if self.quiet:
            return
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def piece(self, text: str) -> None:
        """A part of a line on stdout, where there is no bar."""
        if not self.quiet:
            print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """A line on stderr: what is not a result."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True)
        if not console.is_interactive:  # TERM=dumb
            return
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"))
        self._bar = Progress(
            *columns, console=console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self.steps, text="")
