"""A run's folder: whole or not there, refused where damaged, and never written over what is somebody else's."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmpy import UserError
from llmpy.formats.huggingface import folder as huggingface
from llmpy.models.gpt2 import GPT2, GPT2Config
from llmpy.training import checkpoint
from llmpy.training.config import TrainConfig
from llmpy.training.config_file import to_toml
from llmpy.utils import atomic_files
from tests.tiny_runs import files_of

CONFIG = GPT2Config(vocab_size=131, context=9, layers=2, heads=2, channels=16)
STATE = {"loader": {"sample": 3}, "losses": [0.1, 1 / 3]}
NAMES = ("model.safetensors", "config.json", "optimizer_rank0.safetensors", "state.json", "DONE")


def make_model(seed=1):
    model = GPT2(CONFIG, "reference", 1, 9).initialize(seed)
    random = np.random.default_rng(seed)
    for name in ("m", "v"):
        model.arrays[name][:] = random.standard_normal(len(model.arrays[name]))
    return model


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint, of step 4."""
    checkpoint.start_run(tmp_path / "run", to_toml(TrainConfig()), "{}")
    checkpoint.save(tmp_path / "run", 4, make_model(), STATE)
    return tmp_path / "run"


# ---- there and back ----------------------------------------------------------------------------------------------


def test_a_checkpoint_brings_everything_back_to_the_bit(run):
    newest = checkpoint.newest_step(run)
    assert newest == run / "step_00000004"
    state = checkpoint.verify(newest)
    assert {key: state[key] for key in ("step", *STATE)} == {"step": 4, **STATE}
    model, expected = GPT2(CONFIG, "reference", 1, 9), make_model()
    checkpoint.load(newest, model)
    for name in ("parameters", "m", "v"):
        np.testing.assert_array_equal(model.arrays[name], expected.arrays[name])


def test_a_checkpoint_holds_these_files_and_nothing_else_is_left(run):
    assert sorted(path.name for path in (run / "step_00000004").iterdir()) == sorted(NAMES)
    assert sorted(path.name for path in run.iterdir()) == ["config.toml", "step_00000004", "tokenizer.json"]


def test_transformers_opens_a_checkpoint_as_it_is(run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(run / "step_00000004")
    tokens = np.array([[1, 5, 130, 2, 0, 7, 7, 3, 9]], np.int32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(make_model().logits(tokens), expected, atol=1e-5)


def test_a_step_is_saved_anew_where_it_was_saved_before(run):
    checkpoint.save(run, 4, make_model(seed=2), STATE)
    model = GPT2(CONFIG, "reference", 1, 9)
    checkpoint.load(run / "step_00000004", model)
    np.testing.assert_array_equal(model.parameters.flat, make_model(seed=2).parameters.flat)


# ---- damage ------------------------------------------------------------------------------------------------------


DAMAGES = ("flip first", "flip middle", "flip last", "cut", "cut to nothing", "append", "remove")


@pytest.mark.parametrize(
    ("name", "damage"), [(n, d) for n in NAMES for d in DAMAGES if (n, d) != ("DONE", "remove")]
)  # without DONE it is no checkpoint
def test_a_damaged_file_is_refused_by_name_and_nothing_is_written(run, name, damage):
    path = run / "step_00000004" / name
    data = bytearray(path.read_bytes())
    if damage.startswith("flip"):
        data[{"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[damage[5:]]] ^= 0x10
    elif damage.startswith("cut"):
        data = data[: len(data) // 2 if damage == "cut" else 0]
    elif damage == "append":
        data += b"x"
    path.write_bytes(data) if damage != "remove" else path.unlink()
    before = files_of(run)
    named = "state.json" if name == "DONE" else name  # DONE says what state.json should be
    with pytest.raises(UserError, match=rf"{named}.*(restore it|No such file)") as refused:
        checkpoint.verify(run / "step_00000004")
    assert "\n" not in str(refused.value)
    assert files_of(run) == before


def test_a_checkpoint_without_its_seal_is_not_there(run):
    checkpoint.save(run, 8, make_model(), STATE)
    (run / "step_00000008" / "DONE").unlink()
    assert checkpoint.newest_step(run) == run / "step_00000004"


def test_another_shape_is_refused(run):
    other = GPT2(GPT2Config(vocab_size=131, context=9, layers=1, heads=2, channels=16), "reference", 1, 9)
    with pytest.raises(UserError, match="another shape"):
        checkpoint.load(run / "step_00000004", other)


def test_a_later_format_is_refused(run):
    path = run / "step_00000004"
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": 99}))
    (path / "DONE").write_text(atomic_files.sha256_of(path / "state.json"))
    with pytest.raises(UserError, match="format 99"):
        checkpoint.verify(path)


# ---- disks that fill up, processes that die ------------------------------------------------------------------------


def fill_disk(monkeypatch, file):
    """The disk is full when the so-many-th file is synced."""
    seen, fsync = [], os.fsync

    def full(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            seen.append(descriptor)
        if len(seen) >= file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("file", range(1, 6))
def test_a_full_disk_leaves_nothing_of_the_checkpoint_and_all_of_the_last(run, monkeypatch, file):
    before = files_of(run)
    fill_disk(monkeypatch, file)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device: free some space"):
        checkpoint.save(run, 8, make_model(), STATE)
    assert files_of(run) == before


def test_a_file_that_must_not_grow_larger_is_as_a_full_disk(run):
    """A real failure of a write, in a process of its own: the limit cannot be taken back."""
    pytest.importorskip("resource")
    script = f"""
import resource, signal, sys
from pathlib import Path
from llmpy import UserError
from llmpy.training import checkpoint
from tests.training.test_checkpoint import STATE, make_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    checkpoint.save(Path({str(run)!r}), 8, make_model(), STATE)
except UserError as error:
    print(error)
"""
    before = files_of(run)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert "cannot write" in result.stdout
    assert "File too large" in result.stdout
    assert files_of(run) == before


def test_what_a_killed_run_left_half_done_goes_when_it_is_reopened(run):
    (run / ".step_00000008.123.partial").mkdir()
    (run / ".step_00000008.123.partial" / "model.safetensors").write_bytes(b"half")
    (run / ".main.log.123.abcd.tmp").write_bytes(b"half")
    config = to_toml(TrainConfig(steps=99))
    checkpoint.reopen_run(run, config)
    assert sorted(path.name for path in run.iterdir()) == ["config.toml", "step_00000004", "tokenizer.json"]
    assert (run / "config.toml").read_text() == config


def test_a_disk_without_room_for_a_checkpoint_is_said_before_training(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"1 kB free, and a checkpoint takes \d.* kB: free some space"):
        checkpoint.check_space(tmp_path / "not" / "yet", make_model())
    monkeypatch.undo()
    checkpoint.check_space(tmp_path / "not" / "yet", make_model())


# ---- what is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "major_every", "kept"),
    [(0, 0, [2, 4, 6, 8, 10]), (2, 0, [8, 10]), (1, 4, [4, 8, 10]), (9, 0, [2, 4, 6, 8, 10]), (1, 3, [6, 10])],
)
def test_checkpoints_are_pruned(tmp_path, keep, major_every, kept):
    for step in (2, 4, 6, 8, 10):
        checkpoint.save(tmp_path, step, make_model(), STATE)
    (tmp_path / "step_00000001").mkdir()  # never complete: not counted
    checkpoint.prune(tmp_path, keep, major_every)
    found = sorted(path.name for path in tmp_path.iterdir() if (path / "DONE").exists())
    assert found == [f"step_{step:08d}" for step in kept]


# ---- whose folder it is ------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused(run):
    before = files_of(run)
    with pytest.raises(UserError, match="holds a run already: --resume goes on with it, --overwrite starts anew"):
        checkpoint.start_run(run, "new", None)
    assert files_of(run) == before


def test_overwriting_removes_the_run_and_nothing_else(run):
    (run / "notes.txt").write_text("mine")
    (run / "step_by_step").mkdir()
    checkpoint.start_run(run, to_toml(TrainConfig(seed=7)), None, overwrite=True)
    assert sorted(path.name for path in run.iterdir()) == ["config.toml", "notes.txt", "step_by_step"]
    assert "seed = 7" in (run / "config.toml").read_text()


@pytest.mark.parametrize("name", ["config.toml", "main.log", "metrics.jsonl", "tokenizer.json", "step_00000001"])
def test_what_no_run_wrote_is_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"holds a {name} that no run wrote"):
            checkpoint.start_run(tmp_path, "new", None, overwrite)
    assert files_of(tmp_path) == {name: b"precious"}


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.start_run(tmp_path, to_toml(TrainConfig()), "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "notes.txt", "tokenizer.json"]


def test_a_file_in_the_folders_place_is_said(tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(UserError, match="is a file, and a run needs a folder"):
        checkpoint.check_free(tmp_path / "run")
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.start_run(tmp_path / "run" / "below", "new", None)


def test_a_folder_that_may_not_be_written_to_is_said_early(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"{tmp_path} may not be written to: choose another --out"):
        checkpoint.check_free(tmp_path / "a" / "run")


@pytest.mark.parametrize("file", [1, 2, 3])
def test_a_full_disk_at_the_start_leaves_no_half_of_a_run(tmp_path, monkeypatch, file):
    fill_disk(monkeypatch, file)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.start_run(tmp_path, to_toml(TrainConfig()), "{}")
    assert not files_of(tmp_path)


def test_the_model_of_a_checkpoint_is_unpadded(run):
    config, parameters = huggingface.read_model(run / "step_00000004")
    assert config == CONFIG
    np.testing.assert_array_equal(parameters.flat, make_model().parameters.flat)
