"""`llmpy train` as it is typed: flags long and short, runs that are stopped or killed, one line for each mistake."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llmpy.cli import build_command_parser, main
from llmpy.cli.train import default_out
from llmpy.training import checkpoint
from tests.tiny_runs import TEXT, files_of, losses

ROOT = Path(__file__).parents[2]
TINY_FLAGS = (
    "--tokenizer bytes --layers 1 --heads 2 --channels 16 --batch-size 2 --sequence-length 12 --steps 12 --lr 1e-2 "
    "--eval-every 4 --eval-batches 2 --checkpoint-every 4 --sample-tokens 8 --device reference"
)
TINY = TINY_FLAGS.split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(data, out, *more):
    return main(["train", str(data), "--out", str(out), *TINY, *map(str, more)])


def in_a_process(*arguments, patch="", **more):
    """`llmpy` in a process of its own, in which `patch` is run first."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{patch}\nfrom llmpy.cli import main\nsys.exit(main())"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **more)


def error_of(capsys):
    """The one line on stderr that says what is wrong."""
    line = capsys.readouterr().err
    assert re.fullmatch(r"llmpy: error: .*\n", line), line
    return line


# ---- a run from beginning to end ---------------------------------------------------------------------------------


def test_a_run_prints_losses_a_sample_and_what_to_do_next(data, here, capsys):
    assert train(data, "run") == 0
    captured = capsys.readouterr()
    assert re.search(r"^val loss 5\.\d{6}$", captured.out, re.MULTILINE)
    assert re.search(r"^step +1/12 \| loss 5\.\d+ \(\+nanz\)\| norm .*\| lr .* tok/s$", captured.out, re.MULTILINE)
    assert re.search(r"^step +12/12 ", captured.out, re.MULTILINE)
    assert re.search(r"\n---\n(.|\n)*\n---\n$", captured.out)
    assert "1,600 tokens to train on, 440 to validate on (bytes)" in captured.err
    assert re.search(r"^memory: \d+ MB \(", captured.err, re.MULTILINE)
    assert captured.err.endswith("the model is in run; let it write more:\n  llmpy run run -t 0.8\n")
    assert main(["run", "run", "The", "-n", "3", "--device", "reference"]) == 0
    assert main(["info", "run"]) == 0


def test_a_llama_by_its_size(data, here, capsys):
    shapeless = " ".join(TINY).replace("--layers 1 --heads 2 --channels 16", "--model llama:260K --dropout 0.1").split()
    assert main(["train", str(data), "--out", "run", *shapeless, "--lr", "3e-3"]) == 0
    assert "model: 244k parameters; 5 layers, 8 heads, 64 channels, 257 tokens" in capsys.readouterr().err
    assert main(["run", "run", "The", "-n", "8", "--device", "reference"]) == 0
    assert capsys.readouterr().out.startswith("The")


def test_nothing_but_the_command_is_needed(here):
    """The default run, only less of it."""
    little = "--steps 1 --layers 1 --batch-size 1 --sequence-length 8 --sample-tokens 2 --device reference"
    environment = {**os.environ, "LLMPY_CACHE_DIR": str(here / "cache")}
    result = in_a_process("train", *little.split(), env=environment)
    assert result.returncode == 0, result.stderr
    assert 'llmpy run runs/default "The for statement" -t 0.8' in result.stderr
    assert (here / "runs" / "default" / "step_00000001" / "DONE").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "runs/default"),
        ("shakespeare", "runs/shakespeare"),
        ("/a/My Book.txt", "runs/My_Book"),
        ("data/fox_train_*.bin", "runs/fox"),
        ("*.md", "runs/text"),
    ],
)
def test_a_run_is_named_after_its_data(source, expected):
    assert default_out(source) == Path(expected)


# ---- it stops and goes on ----------------------------------------------------------------------------------------


def test_stopping_and_resuming_gives_the_same_run(data, here, capsys):
    assert train(data, "whole") == 0
    assert train(data, "parts", "--stop-after", 5) == 0
    assert "stopped, and saved in parts; go on with:\n  llmpy train --resume --out parts\n" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", "parts"]) == 0
    assert "going on with parts at step 5" in capsys.readouterr().err
    assert losses(here / "whole") == losses(here / "parts")
    for name in ("main.log", "config.toml", "step_00000012/model.safetensors"):
        assert (here / "whole" / name).read_bytes() == (here / "parts" / name).read_bytes()
    assert main(["train", "-y", "1", "-o", "parts"]) == 0
    assert "all 12 steps are done already: --steps N goes on to more" in capsys.readouterr().err


def test_the_same_in_processes_of_their_own(data, here):
    assert in_a_process("train", data, "--out", "whole", *TINY).returncode == 0
    assert in_a_process("train", data, "--out", "parts", *TINY, "--stop-after", "7").returncode == 0
    assert in_a_process("train", "--resume", "--out", "parts").returncode == 0
    assert losses(here / "whole") == losses(here / "parts")


def test_config_repeats_a_run_and_flags_go_over_it(data, here):
    assert train(data, "first") == 0
    assert main(["train", "--config", "first/config.toml", "--out", "again"]) == 0
    assert losses(here / "first") == losses(here / "again")
    assert main(["train", "--config", "first/config.toml", "--out", "other", "--seed", "7"]) == 0
    assert losses(here / "first") != losses(here / "other")


def test_ctrl_c_saves_and_says_how_to_go_on(data, here):
    interrupt = """
import os, signal
from llmpy.training.trainer import Trainer
train_step = Trainer.train_step
def interrupted(self):
    if self.step == 6:
        os.kill(os.getpid(), signal.SIGINT)
    train_step(self)
Trainer.train_step = interrupted
"""
    result = in_a_process("train", data, "--out", "run", *TINY, patch=interrupt)
    assert result.returncode == 130
    assert result.stderr.endswith("stopped, and saved in run; go on with:\n  llmpy train --resume --out run\n")
    assert checkpoint.newest_step(here / "run").name == "step_00000007"


# Where kill -9 strikes: in a step; with a checkpoint's model written, its state, all but its name; while old ones go.
KILLS = {
    "in a step": "import llmpy.training.trainer as t; t.learning_rate = at(t.learning_rate, 10)",
    "after the model": "import llmpy.training.checkpoint as c; c.write = at(c.write, 2)",
    "before the seal": "import llmpy.training.checkpoint as c; c.sha256_of = at(c.sha256_of, 8)",
    "before the name": "import os; os.rename = at(os.rename, 2)",
    "while old ones go": "import shutil; shutil.rmtree = at(shutil.rmtree, 2)",
}
AT = """
import os
def at(function, call):
    left = [call]
    def killing(*arguments, **more):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), 9)
        return function(*arguments, **more)
    return killing
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is not known here")
@pytest.mark.parametrize("where", KILLS)
def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(data, here, where):
    assert train(data, "whole", "--keep", 1) == 0
    result = in_a_process("train", data, "--out", "parts", *TINY, "--keep", 1, patch=AT + KILLS[where])
    assert result.returncode == -signal.SIGKILL
    newest = checkpoint.newest_step(here / "parts")
    assert newest.name in ("step_00000004", "step_00000008")
    checkpoint.verify(newest)
    assert main(["train", "--resume", "--out", "parts"]) == 0
    assert losses(here / "whole") == losses(here / "parts")
    whole, parts = files_of(here / "whole"), files_of(here / "parts")
    timed = ("state.json", "DONE", "metrics.jsonl")  # they say how long it took
    assert [name for name in whole if not name.endswith(timed) and whole[name] != parts[name]] == []
    assert whole.keys() == parts.keys()


# ---- flags -------------------------------------------------------------------------------------------------------


def test_every_short_flag_of_llm_c_is_taken():
    arguments = (
        "-i a -j b -e d12 -o out -n 5 -nk 2 -nm 10 -y 1 -b 4 -t 64 -d 512 -x -1 -k linear -l 1e-4 -u 7 -q 0.1 -c 0.2 "
        "-sl 3 -sg 4 -v 10 -m 2 -s 20 -g 30 -h 0 -a 1 -w 1 -ge 1 -r 2 -z 0 -pn 1 -pr 0 -pg 1"
    )
    args = build_command_parser("train").parse_intermixed_args(arguments.split())
    expected = {
        "data": "a",
        "val_data": "b",
        "model": "d12",
        "out": "out",
        "checkpoint_every": 5,
        "keep": 2,
        "major_every": 10,
        "resume": 1,
        "batch_size": 4,
        "sequence_length": 64,
        "total_batch_tokens": 512,
        "steps": -1,
        "schedule": "linear",
        "lr": 1e-4,
        "warmup": 7,
        "final_lr_fraction": 0.1,
        "weight_decay": 0.2,
        "skip_loss_z": 3.0,
        "skip_norm_z": 4.0,
        "eval_every": 10,
        "eval_batches": 2,
        "sample_every": 20,
        "sample_tokens": 30,
        "overfit": True,
        "recompute": 2,
    }
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize(
    "flags",
    ["-h 1", "-z 1", "-pn 8", "-pr 1", "-pg 8", "-pi mpi", "-ps 10.0.0.1", "-pf /shared", "-w 2", "-ge 3"],
)
def test_flags_of_llm_c_that_come_later_say_so_in_a_line(flags, here, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *flags.split()])
    assert stopped.value.code == 2
    assert error_of(capsys).startswith(f"llmpy: error: {flags}: ")
    assert not list(here.iterdir())


def test_a_run_by_short_flags(data, here):
    flags = f"-i {data}/*_train_*.bin -j {data}/*_val.bin -o run -b 2 -t 12 -d 48 -x 4 -l 1e-2 -v 2 -m 2 -s 2 -g 3 -n 2"
    shape = "--tokenizer bytes --layers 1 --heads 2 --channels 16 --device reference"
    assert main(["train", *flags.split(), *shape.split()]) == 0
    config = tomllib.loads((here / "run" / "config.toml").read_text())
    assert config["batch"] == {
        "batch_size": 2, "sequence_length": 12, "batches": "stream", "total_batch_tokens": 48,
    }  # fmt: skip
    assert config["data"]["data"] == f"{data}/*_train_*.bin"
    assert (here / "run" / "main.log").read_text().splitlines()[0].startswith("s:0 tel:")


def test_help_needs_its_long_name(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "-b N, --batch-size N" in shown
    assert "(default None)" not in shown


@pytest.mark.parametrize("name", ["bf16", "bfloat16"])
def test_a_run_in_bfloat16(data, here, capsys, name):
    flags = ["--device", "cpu", "--precision", name, "--stochastic-rounding"]
    assert train(data, "run", *flags) == 0
    assert "in bfloat16, learning rate" in capsys.readouterr().err
    text = Path("run/config.toml").read_text()
    assert 'precision = "bfloat16"' in text
    assert "stochastic_rounding = true" in text


@pytest.mark.parametrize(("flags", "precision"), [("--precision fp32", "float32"), ("--device reference", "float32")])
def test_a_run_in_float32(data, here, flags, precision):
    """Where bfloat16 is not asked for, or there is none."""
    assert train(data, "run", "--device", "cpu", *flags.split()) == 0
    assert f'precision = "{precision}"' in Path("run/config.toml").read_text()


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps 0", "--steps must be at least 1 (or -1), not 0"),
        ("--stop-after 0", "--stop-after must be at least 1"),
        ("--schedule exponential", "--schedule is one of cosine, linear, constant, wsd, not exponential"),
        ("--device gpu", "--device is auto, cpu, cuda, cuda:N or reference, not gpu"),
        ("--precision fp16", "--precision is one of float32, bfloat16, auto, fp32, bf16, not fp16"),
        ("--precision bf16", "the reference kernels compute in float32: leave out --precision bfloat16"),
        ("--heads 3", "16 channels cannot be shared by 3 heads"),
        ("--init model.bin", "--init model.bin has a shape: leave out --layers"),
        ("--kv-heads 1", "--kv-heads is a size of Llamas: add --model llama"),
        ("--vocab-size 256", "--vocab-size 256: bytes has 257 tokens: give that many or more"),
        ("--data other.txt", "the data are given twice"),
        ("--resume --overwrite", "give one of them"),
        ("--config missing.toml", "cannot read missing.toml: No such file"),
        ("--batch-size 500", "is too short: 900 tokens, but one batch of 500 x 12 takes 6001"),
        ("--out text.txt", "text.txt is a file, and a run needs a folder"),
        ("--out text.txt/run", "cannot write text.txt/run"),
        ("--tokenizer gpt3", "no tokenizer 'gpt3'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(data, here, capsys, flags, message):
    Path("text.txt").write_text("text")
    assert train(data, "run", *flags.split()) == 1
    assert message in error_of(capsys)
    assert [path.name for path in here.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "cannot read text.txt: No such file"),
        (b"", "text.txt is empty"),
        (b"caf\xe9 " * 100, "text.txt is not UTF-8 at byte 3"),
        (b"short", "too short: 5 characters"),
        (TEXT[:300], "is too short: 2"),
    ],
)
def test_a_text_that_will_not_do_is_said(here, own_cache, capsys, contents, message):
    if contents is not None:
        Path("text.txt").write_bytes(contents)
    assert train("text.txt", "run", "--batch-size", "50") == 1
    assert message in error_of(capsys)
    assert not Path("run").exists()


def test_wrong_usage_is_short_and_ends_with_2(capsys):
    for flags in (["--no-such-flag"], ["--steps", "many"], ["-a", "2"], ["--batch-size"]):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *flags])
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 2


def test_another_runs_folder_is_left_alone(data, here, capsys):
    assert train(data, "run") == 0
    before = files_of(here / "run")
    capsys.readouterr()
    assert train(data, "run") == 1
    assert "run holds a run already: --resume goes on with it, --overwrite starts anew in its place" in error_of(capsys)
    assert main(["train", "--resume", "--out", "run", "--layers", "2"]) == 1
    assert "--layers 2 would make it another" in error_of(capsys)
    assert main(["train", "--resume", "--out", "run", "--config", "run/config.toml"]) == 1
    assert "leave out --config" in error_of(capsys)
    assert files_of(here / "run") == before
    assert train(data, "run", "--overwrite", "--steps", "2") == 0
    assert [path.name for path in Path("run").glob("step_*")] == ["step_00000002"]


def test_resuming_where_there_is_nothing_begins(data, here, capsys):
    """As llm.c does it, so that the same command may be repeated until it is done."""
    assert train(data, "run", "-y", 1, "--stop-after", 3) == 0
    assert "run holds no run yet: starting at the beginning" in capsys.readouterr().err
    assert train(data, "run", "-y", 1) == 0
    assert [step for step, _ in losses(here / "run")] == list(range(12))


@pytest.mark.parametrize("name", ["config.toml", "step_00000004/optimizer_rank0.safetensors"])
def test_a_damaged_file_of_a_run_is_named_and_nothing_is_written(data, here, capsys, name):
    assert train(data, "run", "--stop-after", 4) == 0
    path = here / "run" / name
    for contents in (path.read_bytes()[:-20], path.read_bytes().replace(b"2", b"3", 1)):
        path.write_bytes(contents)
        before = files_of(here / "run")
        capsys.readouterr()
        assert main(["train", "--resume", "--out", "run"]) == 1
        assert f"run/{name}" in error_of(capsys)
        assert files_of(here / "run") == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said_before_training(data, here, capsys):
    Path("locked").mkdir(mode=0o500)
    assert train(data, "locked/run") == 1
    assert "may not be written to: choose another --out" in error_of(capsys)


def test_a_disk_that_is_full_while_it_trains_keeps_the_last_checkpoint(data, here):
    pytest.importorskip("resource")
    limit = """
import resource, signal
from llmpy.training.trainer import Trainer
train_step = Trainer.train_step
def limited(self):
    if self.step == 6:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    train_step(self)
Trainer.train_step = limited
"""
    result = in_a_process("train", data, "--out", "run", *TINY, "--layers", "2", patch=limit)
    assert result.returncode == 1
    assert re.search(r"^llmpy: error: cannot write .*File too large", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
    newest = checkpoint.newest_step(here / "run")
    assert newest.name == "step_00000004"
    checkpoint.verify(newest)
    assert not list((here / "run").glob(".*"))
