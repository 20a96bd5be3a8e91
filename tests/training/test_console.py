"""What a run tells: z-scores, speed, logs to the byte, lines on the screen."""

import io
import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from llmpy import UserError
from llmpy.models.presets import from_descriptor
from llmpy.training import console
from llmpy.training.console import OutlierDetector, RunLog, Screen, Throughput, cut_logs, flops_per_token, step_line


def test_no_value_is_an_outlier_until_there_are_128():
    detector = OutlierDetector()
    assert all(math.isnan(detector.update(float(i))) for i in range(128))
    assert math.isfinite(detector.update(0.0))


def test_the_z_score_is_of_a_window_that_includes_the_newest():
    values = np.random.default_rng(0).normal(3, 2, 400).tolist()
    detector = OutlierDetector()
    for i, value in enumerate(values):
        z = detector.update(value)
        if i >= 128:
            window = values[i - 127 : i + 1]
            expected = (value - statistics.fmean(window)) / statistics.pstdev(window)
            assert z == pytest.approx(expected, rel=1e-9)


def test_a_window_of_one_value_has_no_outliers():
    detector = OutlierDetector()
    for _ in range(200):
        z = detector.update(0.1)
    assert z == 0.0


def test_a_jump_stands_out():
    detector = OutlierDetector()
    for i in range(128):
        detector.update(math.sin(i))
    assert detector.update(100.0) > 10


def test_throughput_is_llm_cs_mean():
    throughput = Throughput()
    assert throughput.update(1000, 10.0) == 100  # the first, which warms up, counts for itself only
    mean = 0.0
    for step, seconds in enumerate([1.0, 2.0, 4.0, 1.0], start=1):
        mean = 0.95 * mean + 0.05 * 1000 / seconds
        assert throughput.update(1000, seconds) == pytest.approx(mean / (1 - 0.95**step))


def test_the_cost_of_a_token_is_llm_cs():
    config = from_descriptor("d12")
    assert flops_per_token(config, 1024) == 6 * 124_475_904 + 6 * 12 * 768 * 1024
    tied = from_descriptor("llama:15M")
    assert flops_per_token(tied, 256) == 6 * 15_191_712 + 6 * 6 * 288 * 256
    assert flops_per_token(replace(tied, tied=False), 256) == flops_per_token(tied, 256), "what is looked up is free"


def test_main_log_is_llm_cs_to_the_byte(tmp_path):
    with RunLog(tmp_path) as log:
        log.validation(0, 10.98765)
        log.train(0, 10.5, 6e-4, 1.234, loss_z=math.nan, skipped=False)
        log.train(12345, 0.00004, 3.3e-7, 123.456, loss_z=1.5, skipped=True)
        log.sample(12346, "naïve\n")
    assert (tmp_path / "main.log").read_bytes() == (
        b"s:0 tel:10.9877\ns:0 trl:10.5000 lr:0.000600 norm:1.23\ns:12345 trl:0.0000 lr:0.000000 norm:123.46\n"
    )
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert metrics == [
        {"step": 0, "kind": "validation", "loss": 10.98765},
        {"step": 0, "kind": "train", "loss": 10.5, "lr": 6e-4, "norm": 1.234, "loss_z": None, "skipped": False},
        {"step": 12345, "kind": "train", "loss": 4e-5, "lr": 3.3e-7, "norm": 123.456, "loss_z": 1.5, "skipped": True},
        {"step": 12346, "kind": "sample", "text": "naïve\n"},
    ]


def write_logs(folder, steps):
    with RunLog(folder) as log:
        for step in range(steps):
            if step % 2 == 0:
                log.validation(step, 3.0)
                log.sample(step, "text")
            log.train(step, 2.0, 0.1, 1.0)


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("step", [0, 3, 4])
def test_logs_are_cut_to_what_a_resumed_run_will_not_do_again(tmp_path, step, evaluated):
    for name in ("whole", "begun"):
        (tmp_path / name).mkdir()
    write_logs(tmp_path / "whole", 8)
    cut_logs(tmp_path / "whole", step, evaluated)
    write_logs(tmp_path / "begun", step)
    if evaluated and step % 2 == 0:
        with RunLog(tmp_path / "begun") as log:
            log.validation(step, 3.0)
            log.sample(step, "text")
    for name in ("main.log", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "begun" / name).read_bytes()


def test_a_line_that_was_cut_short_goes(tmp_path):
    write_logs(tmp_path, 3)
    expected = (tmp_path / "main.log").read_bytes()
    with open(tmp_path / "main.log", "ab") as file:
        file.write(b"s:2 trl:2.0")
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "kind": "tr')
    cut_logs(tmp_path, 3, False)
    assert (tmp_path / "main.log").read_bytes() == expected
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_logs_that_are_not_there_need_no_cut(tmp_path):
    cut_logs(tmp_path, 5, True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*main\.log"):
        RunLog(tmp_path / "missing")


def test_a_full_disk_is_said(tmp_path):
    log = RunLog(tmp_path)
    log.__exit__()
    log._files["main.log"] = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot write /dev/full: No space left"):
        log.validation(0, 1.0)
    with pytest.raises(UserError, match="No space left"):
        log.__exit__()


def test_the_line_of_a_step_is_llm_cs():
    assert step_line(4, 300, 10.123456789, math.nan, 1.5, -0.257, 6e-4, 0.123456, 187.44, 12345.6) == (
        "step    5/300 | loss 10.123457 (+nanz)| norm 1.5000 (-0.26z)| lr 6.00e-04 | 123.46 ms | 187.4 GFLOP/s"
        " | 12346 tok/s"
    )
    with_mfu = step_line(4, 300, 10.123456789, math.nan, 1.5, -0.257, 6e-4, 0.123456, 187.44, 12345.6, 0.4128)
    assert with_mfu.endswith("| 123.46 ms | 41.3% MFU | 12346 tok/s")


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
