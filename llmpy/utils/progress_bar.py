"""Progress of a task: a bar on a terminal, a line from time to time in a pipe, nothing for a short task."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SILENT_SECONDS = 1.0  # what is over by then shows nothing
LINE_SECONDS = 5.0  # in a pipe, at most one line in so many seconds


def amount(n: float, unit: str = "") -> str:
    """1234567 -> "1.23M", with unit "tokens" "1.23M tokens", with unit "B" "1.23 MB"."""
    scaled, prefix = float(n), ""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(scaled) < 999.5 or prefix == "T":
            break
        scaled /= 1000
    digits = f"{n:.0f}" if not prefix else f"{scaled:.3g}"
    if unit == "B":
        return f"{digits} {prefix}B"
    return f"{digits}{prefix} {unit}".rstrip()


def duration(seconds: float) -> str:
    """75 -> "1m15s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


class Bar:
    """A progress bar, made by `bar`; the caller calls `advance` during the work."""

    def __init__(self, description: str, total: float | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0.0
        self._start = time.monotonic()
        self._next_line = self._start + SILENT_SECONDS
        self._terminal = sys.stderr.isatty()
        self._rich: Any = None
        self._task: Any = None

    def advance(self, n: float = 1) -> None:
        """n more of the unit are done."""
        self.done += n
        if self._rich is not None:
            self._rich.update(self._task, completed=self.done, total=self.total, amount=self._amounts())
        elif time.monotonic() >= self._next_line:
            if self._terminal:
                self._open_rich()
            else:
                self._print_line()

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def _amounts(self) -> str:
        if not self.total:
            return amount(self.done, self.unit)
        return f"{amount(self.done, 'B' if self.unit == 'B' else '')} of {amount(self.total, self.unit)}"

    def _open_rich(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not console.is_interactive:  # TERM=dumb
            self._terminal = False
            return self._print_line()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
        self._rich = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._rich.start()
        self._task = self._rich.add_task(self.description, amount="")
        self.advance(0)

    def _print_line(self) -> None:
        elapsed = time.monotonic() - self._start
        self._next_line = self._start + elapsed + LINE_SECONDS
        line = f"{self.description}: {self._amounts()}"
        if self.total and self.total / 200 <= self.done <= self.total:  # before, any guess is wild
            left = elapsed * (self.total - self.done) / self.done
            line += f" ({100 * self.done / self.total:.0f}%), {duration(left)} left"
        print(line, file=sys.stderr, flush=True)


@contextmanager
def bar(description: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """Shows on stderr how far the work in the block is, with the time left, once it has taken a second.

    `total` is in `unit` ("B" for bytes, "tokens", "kernels", ...); None where it is not known.
    """
    shown = Bar(description, total, unit)
    try:
        yield shown
    finally:
        shown.close()


_told: set[str] = set()


def note(text: str) -> None:
    """A line on stderr, once in the life of the process."""
    if text not in _told:
        _told.add(text)
        print(f"llmpy: {text}", file=sys.stderr, flush=True)
