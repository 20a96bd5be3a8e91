"""llmpy info: facts on stdout, for people and for programs; the status says whether all is sound."""

import json

import numpy as np
import pytest

from llmpy.cli import main
from llmpy.formats.llmc import debug_state
from llmpy.formats.llmc import model as llmc
from tests.model_files import BYTES, make_model, write_checkpoint

FAST = ["--device", "reference"]


@pytest.fixture
def info(capsys):
    """`info(*arguments)` -> (status, stdout, stderr)"""

    def info(*arguments):
        status = main(["info", *map(str, arguments)])
        return status, *capsys.readouterr()

    return info


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The debug state of the model in the fixture `models`."""
    path = tmp_path_factory.mktemp("state") / "state.bin"
    x = np.random.default_rng(0).integers(0, 257, (2, BYTES.context)).astype(np.int32)
    debug_state.write_debug_state(path, debug_state.make_debug_state(make_model(BYTES), x, np.roll(x, -1, axis=1)))
    return path


def test_a_model_for_people(models, info):
    status, out, err = info(models / "folder")
    assert (status, err) == (0, "")
    assert out.startswith(f"{models / 'folder'}: Hugging Face folder\n")
    assert "channels               4\n" in out
    assert "sound                  yes\n" in out
    assert "wte" not in out


def test_its_tensors(models, info):
    _, out, _ = info(models / "model.bin", "--tensors")
    [line] = [line for line in out.splitlines() if line.split()[0] == "qkvw"]
    assert "float32   1 x 12 x 4" in line


def test_a_model_for_programs(models, info):
    found = json.loads(info(models / "model.bin", "--json")[1])
    assert (found["kind"], found["sound"], found["vocab_size"], found["tensors"]) == (
        "GPT-2 model of llm.c",
        True,
        257,
        [],
    )
    assert len(json.loads(info(models / "model.bin", "--json", "--tensors")[1])["tensors"]) == 16


def test_a_run_and_its_settings(tmp_path, info):
    write_checkpoint(tmp_path / "step_00000010", make_model(BYTES))
    (tmp_path / "config.toml").write_text("# llmpy train\n[model]\nlayers = 1\n")
    status, out, _ = info(tmp_path)
    assert status == 0
    assert "checkpoints            step_00000010\n" in out
    assert "  settings\n    layers               1\n" in out


def test_what_is_not_sound_has_status_1(tmp_path, info):
    model = make_model(BYTES)
    model.parameters.wpe[0, 0] = np.nan
    llmc.write_model(tmp_path / "model.bin", BYTES, model.parameters)
    status, out, _ = info(tmp_path / "model.bin")
    assert status == 1
    assert "sound                  no: 1 of the 36 numbers of wpe are infinite or not a number\n" in out
    assert json.loads(info(tmp_path / "model.bin", "--json")[1])["sound"] is False


def test_what_is_cut_is_one_line(models, tmp_path, info):
    (tmp_path / "cut.bin").write_bytes((models / "model.bin").read_bytes()[:-4])
    status, out, err = info(tmp_path / "cut.bin")
    assert (status, out) == (1, "")
    assert err.startswith(f"llmpy: error: {tmp_path / 'cut.bin'} is cut off: ")


def test_tokens_as_text(state, info):
    assert "first text" not in info(state)[1]
    assert "first text" in info(state, "--tokenizer", "bytes")[1]


def test_a_model_against_a_debug_state(models, state, info):
    status, out, err = info(models / "model.bin", "--check", state, *FAST)
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()][:3] == ["logits", "loss", "dwte"]
    assert out.count(" ok\n") == 18
    found = json.loads(info(models / "model.bin", "--check", state, "--json", *FAST)[1])
    assert found["passed"] is True
    assert len(found["tensors"]) == 18


def test_a_model_that_does_not_agree_with_it(state, tmp_path, info):
    model = make_model(BYTES)
    model.parameters.fcb[0, 0] += 1
    llmc.write_model(tmp_path / "model.bin", BYTES, model.parameters)
    status, out, err = info(tmp_path / "model.bin", "--check", state, *FAST)
    assert status == 1
    assert "DIFFERS" in out
    assert "does not agree" in err
