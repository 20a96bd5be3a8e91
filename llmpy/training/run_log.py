"""The log of a run: `main.log` in llm.c's format, `metrics.jsonl`, and llm.c's line for a step."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from llmpy.errors import UserError
from llmpy.training.checkpoint import MAIN_LOG, METRICS
from llmpy.utils.atomic_files import cannot_write, write_text_atomic


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
            file.flush()  # a killed run keeps every line of its log
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
    """Removes from both logs the lines that a run resumed at `step` will write again, and an incomplete last line.

    `evaluated`: the validation and the sample before that step are done.
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
