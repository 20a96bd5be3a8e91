"""The screen of a training run: lines on stdout, and a progress bar on a terminal."""

import io

import pytest

from llmpy.training import console
from llmpy.training.console import Screen


def steps_on_screen(screen, steps):
    with screen:
        for step in range(steps):
            screen.step(step, f"line {step + 1}", 2.0, 1000.0, 10)


def test_in_a_pipe_lines_come_as_often_as_they_can_be_read(capsys, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(console.time, "monotonic", lambda: 1000.0 + 0.5 * next(clock))
    steps_on_screen(Screen(11), 11)
    assert capsys.readouterr().out.split("\n") == ["line 1", "line 5", "line 9", "line 11", ""]


@pytest.mark.parametrize(("log_every", "expected"), [(4, [4, 8, 10]), (1, range(1, 11)), (-1, [])])
def test_lines_can_be_asked_for_by_step(capsys, log_every, expected):
    steps_on_screen(Screen(10, log_every), 10)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"line {step}" for step in expected]
    assert captured.err == ""


def test_a_quiet_screen_says_nothing(capsys):
    screen = Screen(10, 1, quiet=True)
    steps_on_screen(screen, 3)
    screen.note("note")
    screen.piece("piece")
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_is_a_bar_and_lines_still_go_to_a_pipe(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(console.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    steps_on_screen(Screen(3, 1), 3)
    shown = terminal.getvalue()
    assert "3/3" in shown
    assert "loss 2.000 | 1,000 tok/s | 0s left" in shown
    assert "line" not in shown
    assert capsys.readouterr().out.splitlines() == ["line 1", "line 2", "line 3"]


def test_a_terminal_that_can_nothing_gets_no_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(console.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    steps_on_screen(Screen(3, 1), 3)
    assert terminal.getvalue() == ""
