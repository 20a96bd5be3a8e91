"""The log of a run: `main.log` and `metrics.jsonl` to the byte, and llm.c's line for a step."""

import json
import math

import pytest

from llmpy import UserError
from llmpy.training.run_log import RunLog, cut_logs, step_line


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
