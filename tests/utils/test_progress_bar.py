"""Progress: silent when quick, lines in a pipe, a bar on a terminal."""

import pytest

from llmpy.utils import progress_bar


@pytest.mark.parametrize(
    ("n", "unit", "shown"),
    [
        (0, "", "0"),
        (999, "", "999"),
        (1000, "", "1k"),
        (1_234_567, "tokens", "1.23M tokens"),
        (999_600, "B", "1 MB"),
        (3, "kernels", "3 kernels"),
        (2e15, "B", "2e+03 TB"),
    ],
)
def test_amounts(n, unit, shown):
    assert progress_bar.amount(n, unit) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0s"), (75, "1m15s"), (3600, "1h00m"), (7290, "2h01m")])
def test_durations(seconds, shown):
    assert progress_bar.duration(seconds) == shown


def test_what_is_quick_shows_nothing(capfd):
    with progress_bar.bar("quick", 3, "things") as bar:
        for _ in range(3):
            bar.advance()
    assert capfd.readouterr() == ("", "")


def test_lines_in_a_pipe(capfd, monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: next(clock))
    with progress_bar.bar("working", 10, "tokens") as bar:
        for _ in range(10):
            bar.advance()
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 2 <= len(lines) < 10
    assert lines[0] == "working: 1 of 10 tokens (10%), 36s left"


def test_lines_without_a_total(capfd, monkeypatch):
    clock = iter(range(0, 1000, 9))
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: next(clock))
    with progress_bar.bar("loading", unit="B") as bar:
        bar.advance(5000)
    assert capfd.readouterr().err == "loading: 5 kB\n"


@pytest.mark.parametrize(("terminal", "drawn"), [("xterm", "━"), ("dumb", "of 3 MB")])
def test_a_terminal_gets_a_bar_unless_it_is_dumb(capfd, monkeypatch, terminal, drawn):
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(progress_bar, "SILENT_SECONDS", 0)
    monkeypatch.setattr(progress_bar.sys.stderr, "isatty", lambda: True)
    with progress_bar.bar("working", 3e6, "B") as bar:
        bar.advance(1e6)
        bar.advance(1e6)
    assert drawn in capfd.readouterr().err
