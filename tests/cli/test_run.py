"""llmpy run: the text goes to stdout as it is made, all else to stderr."""

import argparse
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmpy.cli import generation, main
from llmpy.formats.llmc import model as llmc
from llmpy.inference.scheduler import OVERFLOWS
from llmpy.tokenization.base import ByteTokenizer
from tests.model_files import BYTES, make_model
from tests.tiny_runs import tiny, trained

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--device", "reference"]


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """Nothing is connected to stdin unless a test does so."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture
def run(models, capsys):
    """`run(*arguments)` -> (status, stdout, stderr)"""

    def run(*arguments, model="folder"):
        status = main(["run", str(models / model), *FAST, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def process(*arguments, **options):
    command = [sys.executable, "-m", "llmpy", "run", *map(str, arguments), *FAST]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | options.pop("env", {})
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **options
    )


def test_a_text_with_its_prompt_on_stdout_and_the_figures_on_stderr(run):
    status, out, err = run("Once", "-n", 30, "-s", 3, "--no-stop")
    assert status == 0
    assert out.startswith("Once")
    assert out.endswith("\n")
    assert len(out) > 20
    assert re.fullmatch(r"prompt 4 tokens in \S+ s, 30 tokens at \S+ tokens/s; --seed 3\n", err)


def test_the_seed_that_is_printed_repeats_the_text(run):
    _, out, err = run("Once", "-n", 30)
    seed = re.search(r"--seed (\d+)", err)[1]
    assert run("Once", "-n", 30, "--seed", seed)[1] == out
    assert run("Once", "-n", 30, "--seed", int(seed) + 1)[1] != out


def test_every_way_to_give_a_prompt(run, tmp_path, monkeypatch):
    (tmp_path / "prompt").write_bytes("Grüße\n".encode())
    expected = run("Grüße", "-s", 1)[1]
    assert expected.startswith("Grüße")
    assert run("-i", "Grüße", "-s", 1)[1] == expected
    assert run("--prompt-file", tmp_path / "prompt", "-s", 1)[1] == expected
    with open(tmp_path / "prompt", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("-s", 1)[1] == expected
    with open(tmp_path / "prompt", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("-", "-s", 1)[1] == expected


def test_from_nothing_a_new_text_begins(run):
    _, out, err = run("-n", 20, "-s", 1)
    assert "prompt 1 tokens" in err
    assert "<|endoftext|>" not in out


def test_samples_one_after_the_other(run):
    both = run("A", "-n", 15, "-s", 5, "--num-samples", 2)[1]
    assert both == "---\n".join(run("A", "-n", 15, "-s", seed)[1] for seed in (5, 6))


def test_greedy_takes_no_heed_of_the_seed(run):
    assert run("A", "-t", 0, "-s", 1)[1] == run("A", "-t", 0, "-s", 2)[1]


def test_it_stops_where_the_text_ends_unless_told_not_to(tmp_path, run, capsys):
    model = make_model(BYTES)
    model.parameters.lnfw[:], model.parameters.lnfb[:] = 0, 1
    model.parameters.wte[:] = 0
    model.parameters.wte[256] = 5  # the end of text, always
    llmc.write_model(tmp_path / "model.bin", BYTES, model.parameters)
    arguments = ["run", str(tmp_path / "model.bin"), "ab", *FAST, "-z", "bytes", "-n", "3", "-t", "0"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "ab\n"
    assert main([*arguments, "--no-stop"]) == 0
    assert capsys.readouterr().out == "ab" + 3 * "<|endoftext|>" + "\n"


def test_it_stops_before_a_stop_string(run):
    text = run("A", "-n", 40, "-s", 1)[1]
    stop = text[10:12]
    assert run("A", "-n", 40, "-s", 1, "--stop", "never there", "--stop", stop)[1] == text[: text.index(stop, 1)] + "\n"
    both = run("A", "-n", 40, "-s", 1, "--num-samples", 2, "--stop", stop)[1]
    assert both.startswith(text[: text.index(stop, 1)] + "\n---\nA")


def test_log_probabilities_in_lines_of_json(run):
    status, out, _ = run("A", "-n", 9, "-s", 1, "--num-samples", 2, "--logprobs", "--no-stop")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line["sample"] for line in lines] == [0, 1] * 9
    assert all(line["logprob"] < 0 for line in lines)
    text = ByteTokenizer().decode(line["token"] for line in lines if line["sample"] == 0)
    assert run("A", "-n", 9, "-s", 1, "--no-stop")[1] == f"A{text}\n"


def test_log_probabilities_end_with_the_token_that_stops_the_text(run):
    out = run("A", "-n", 9, "-s", 1, "--logprobs", "--no-stop")[1]
    third = json.loads(out.splitlines()[2])["text"]
    stopped = run("A", "-n", 9, "-s", 1, "--logprobs", "--no-stop", "--stop", third)[1]
    assert out.startswith(stopped)
    assert json.loads(stopped.splitlines()[-1])["text"] == third


@pytest.mark.parametrize("flags", [["--min-p", 1], ["--repetition-penalty", 0.001, "--repetition-window", 1]])
def test_flags_that_shape_what_is_drawn(flags, run):
    assert run("A", "-n", 20, "-s", 1, *flags)[1] != run("A", "-n", 20, "-s", 1)[1]


def test_the_same_model_in_llmcs_file_with_a_tokenizer_by_name(run):
    expected = run("A", "-s", 1)[1]
    assert run("A", "-s", 1, "-z", "bytes", model="model.bin")[1] == expected


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["A", "-i", "B"], "more than one prompt"),
        (["--prompt-file", "missing"], "cannot read missing"),
        (["A", "-t", "-1"], "temperature"),
        (["A", "-p", "2"], "top-p"),
        (["A", "--num-samples", "0"], "0 samples"),
        (["A", "-n", "-1"], "-1 tokens"),
        (["A", "-z", "nothing"], "no tokenizer 'nothing'"),
        (["A", "--min-p", "2"], "min-p"),
        (["A", "--repetition-penalty", "0"], "repetition penalty"),
        (["A", "--stop", ""], "stop string is empty"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(arguments, why, run):
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("llmpy: error: ")
    assert err.count("\n") == 1
    assert why in err


def test_a_model_without_a_tokenizer_asks_for_one(run):
    assert "give --tokenizer" in run("A", model="model.bin")[2]


def test_a_device_that_there_is_not(models, capsys):
    assert main(["run", str(models / "folder"), "A", "--device", "abacus"]) == 1
    assert "'abacus'" in capsys.readouterr().err


def test_a_context_that_is_full(run):
    texts = {
        overflow: run("abc", "-n", 40, "-s", 1, "--no-stop", "--overflow", overflow)[1]
        for overflow in ("reread", "stop")
    }
    assert run("abc", "-n", 40, "-s", 1, "--no-stop")[1] == texts["reread"]
    assert texts["reread"].startswith(texts["stop"].rstrip("\ufffd\n"))
    assert run("abc", "-n", 40, "-s", 1, "--no-stop", "--context", 5)[1] != texts["reread"]
    status, out, err = run("abc", "--overflow", "roll")
    assert (status, out) == (1, "")
    assert "use reread or stop" in err
    status, _, err = run("abc", "--context", 10)
    assert status == 1
    assert "a context of 10 tokens cannot be had: the model has positions for 9" in err


def test_the_ways_of_overflow_are_those_of_a_batch():
    parser = argparse.ArgumentParser()
    generation.add_arguments(parser, None, "")
    [choices] = [action.choices for action in parser._actions if "--overflow" in action.option_strings]
    assert tuple(choices) == OVERFLOWS


def test_generating_in_bfloat16(models, capsys):
    texts = []
    for precision in ("bf16", "bfloat16", "fp32"):
        words = ["run", str(models / "folder"), "Once", "-n", "30", "-s", "3", "--device", "cpu"]
        assert main([*words, "--precision", precision, "--no-stop"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert all(text.startswith("Once") and len(text) > 20 for text in texts)


@pytest.mark.parametrize(("precision", "weights"), [("bfloat16", "BF16"), ("float32", "F32")])
def test_a_run_generates_in_the_precision_that_it_was_trained_with(data, tmp_path, monkeypatch, precision, weights):
    trained(tiny(data, device="cpu", steps=1, precision=precision), tmp_path / "run")
    started = []
    monkeypatch.setattr("llmpy.kernels.start", lambda *arguments: started.append(arguments))
    parser = argparse.ArgumentParser()
    generation.add_arguments(parser, 1, "")
    _, engine = generation.start(parser.parse_args([str(tmp_path / "run"), "--device", "cpu", "--threads", "1"]))
    assert started == [("cpu", 1, precision)]
    assert engine.precision == precision
    assert list(engine.weights.kinds) == [weights]


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("fp16", "there is no precision fp16: use stored, float32, bfloat16, q8, auto"),
        ("bf16", "the reference kernels compute in float32: leave out --precision bfloat16"),
    ],
)
def test_a_precision_that_there_is_not(run, precision, why):
    status, out, err = run("A", "--precision", precision)
    assert (status, out) == (1, "")
    assert err == f"llmpy: error: {why}\n"


def test_a_prompt_that_is_no_text(run, tmp_path):
    (tmp_path / "prompt").write_bytes(b"abc\xff")
    assert "prompt is not UTF-8 text (byte 3)" in run("--prompt-file", tmp_path / "prompt")[2]
    assert "the prompt is not UTF-8 text (byte 3)" in run(os.fsdecode(b"abc\xff"))[2]


def test_weights_that_are_no_numbers_are_said(tmp_path, capsys):
    model = make_model(BYTES)
    model.parameters.lnfb[0] = float("nan")
    llmc.write_model(tmp_path / "model.bin", BYTES, model.parameters)
    assert main(["run", str(tmp_path / "model.bin"), "A", *FAST, "-z", "bytes"]) == 1
    assert "not a number" in capsys.readouterr().err


def test_a_pipe_gets_whole_characters_at_once_whatever_the_locale(models):
    environment = {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with process(models / "folder", "é", "-n", "300", "-s", "1", env=environment) as running:
        chunks = iter(lambda: running.stdout.read1(65536), b"")
        texts = [chunk.decode() for chunk in chunks]  # each is UTF-8 by itself
        assert running.stderr.read().startswith(b"prompt 2 tokens")
    assert running.returncode == 0
    assert texts[0].startswith("é")
    assert len("".join(texts)) > 100


def test_a_reader_that_goes_away_is_no_error(models):
    with process(models / "folder", "A", "-n", "10000000", "--no-stop") as running:
        assert running.stdout.read(10).startswith(b"A")
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(30) == 1
