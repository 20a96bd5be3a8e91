"""What a run tells: outliers, throughput, `main.log` in llm.c's form, `metrics.jsonl`, lines or a bar on the screen."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from llmpy.errors import UserError
from llmpy.models.config import ModelConfig
from llmpy.models.parameters import total_size
from llmpy.training.checkpoint import MAIN_LOG, METRICS
from llmpy.utils.atomic_files import cannot_write, write_text_atomic
from llmpy.utils.progress_bar import duration

WINDOW = 128  # values an outlier is judged by
LINE_SECONDS = 2.0  # between two lines on the screen, where nobody asked for another measure
REFRESH_SECONDS = 0.2


class OutlierDetector:
    """How far a value is from the last 128: its z-score, in standard deviations. NaN until there are as many."""

    def __init__(self) -> None:
        self.window: list[float] = []

    def update(self, value: float) -> float:
        """Takes a value in and returns its z-score, by the mean and variance of a window that includes it."""
        if len(self.window) < WINDOW:
            self.window.append(value)
            return math.nan
        self.window = [*self.window[1:], value]
        mean = math.fsum(self.window) / WINDOW
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self.window) / WINDOW)
        return (value - mean) / deviation if deviation else 0.0


class Throughput:
    """Tokens a second: an exponential mean, corrected for its start at zero. The first step, a warm-up, is left out."""

    DECAY = 0.95

    def __init__(self) -> None:
        self._mean, self._count = 0.0, -1

    def update(self, tokens: int, seconds: float) -> float:
        now = tokens / max(seconds, 1e-9)
        self._count += 1
        if self._count == 0:
            return now
        self._mean = self.DECAY * self._mean + (1 - self.DECAY) * now
        return self._mean / (1 - self.DECAY**self._count)


def flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Floating-point operations to train on one token: 6 for each parameter, and attention's (PaLM, appendix B, halved:
    it is causal). An embedding that is not the head's too is looked up, not multiplied with."""
    parameters = total_size(config.parameter_table())
    if not config.tied:
        parameters -= config.vocab_size * config.channels
    return 6 * parameters + 6 * config.layers * config.heads * config.head_size * sequence_length


# ---- files ---------------------------------------------------------------------------------------------------------


class RunLog:
    """`main.log`, which plots of llm.c read as it is, and `metrics.jsonl`, one object an event, of a run folder."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` None: nothing is written. Raises UserError where it cannot be."""
        self._files: dict[str, TextIO] = {}
        for name in (MAIN_LOG, METRICS) if folder else ():
            assert folder is not None
            try:
                self._files[name] = open(folder / name, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
            except OSError as error:
                raise cannot_write(folder / name, error) from error

    def train(self, step: int, loss: float, lr: float, norm: float, **more: Any) -> None:
        self._line(MAIN_LOG, f"s:{step} trl:{loss:.4f} lr:{lr:.6f} norm:{norm:.2f}")
        self._event(step, "train", loss=loss, lr=lr, norm=norm, **more)

    def validation(self, step: int, loss: float) -> None:
        self._line(MAIN_LOG, f"s:{step} tel:{loss:.4f}")
        self._event(step, "validation", loss=loss)

    def sample(self, step: int, text: str) -> None:
        self._event(step, "sample", text=text)

    def _event(self, step: int, kind: str, **values: Any) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._line(METRICS, json.dumps({"step": step, "kind": kind, **finite}, ensure_ascii=False))

    def _line(self, name: str, line: str) -> None:
        if (file := self._files.get(name)) is None:
            return
        try:
            file.write(line + "\n")
            file.flush()  # a run that is killed has said all it knew
        except OSError as error:
            raise cannot_write(Path(file.name), error) from error

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                raise cannot_write(Path(file.name), error) from error
        self._files = {}


def cut_logs(folder: Path, step: int, evaluated: bool) -> None:
    """Takes out of both logs what a run that goes on from `step` will do again, and a line that was cut short.

    `evaluated`: what was to be done before training that step has been done.
    """

    def is_kept(at: int, kind: str) -> bool:
        return at < step or (at == step and evaluated and kind not in ("trl", "train"))

    def keep_main(line: str) -> bool:
        match = re.match(r"s:(\d+) (\w+):", line)
        return match is not None and is_kept(int(match[1]), match[2])

    def keep_metrics(line: str) -> bool:
        try:
            event = json.loads(line)
            return is_kept(event["step"], event["kind"])
        except (ValueError, KeyError, TypeError):
            return False

    _cut(folder / MAIN_LOG, keep_main)
    _cut(folder / METRICS, keep_metrics)


def _cut(path: Path, is_kept: Callable[[str], bool]) -> None:
    try:
        old = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    new = "".join(line for line in old.splitlines(keepends=True) if line.endswith("\n") and is_kept(line))
    if new != old:
        write_text_atomic(path, new)


# ---- the screen ----------------------------------------------------------------------------------------------------


def step_line(
    step: int, steps: int, loss: float, loss_z: float, norm: float, norm_z: float, lr: float, seconds: float,
    gflops: float, tokens_per_s: float, mfu: float | None = None,
) -> str:  # fmt: skip
    """llm.c's line of a step, which counts from 0; with the speed in GFLOP/s where `mfu`, the share of what a GPU could
    do at most, is not known."""
    speed = f"{gflops:.1f} GFLOP/s" if mfu is None else f"{100 * mfu:.1f}% MFU"
    return (
        f"step {step + 1:4d}/{steps} | loss {loss:7.6f} ({loss_z:+.2f}z)| norm {norm:6.4f} ({norm_z:+.2f}z)"
        f"| lr {lr:.2e} | {seconds * 1000:.2f} ms | {speed} | {tokens_per_s:.0f} tok/s"
    )


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
