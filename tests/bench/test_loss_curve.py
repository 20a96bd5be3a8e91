"""The script that draws curves of the loss, with a model that trains in a second."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from llmpy.bench import loss_curve
from llmpy.models.gpt2 import GPT2Config
from llmpy.utils.progress_bar import bar

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loss_curve.py"
pytest.importorskip("torch")


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs benchmarks/loss_curve.py with these words on a tiny model -> the result that it wrote."""
    spec = importlib.util.spec_from_file_location("loss_curve_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = tmp_path / "text.txt"
    text.write_text("abcabcabd " * 200)
    size = ["--layers", "1", "--heads", "2", "--channels", "16", "--sequence-length", "8", "--batch-size", "2"]

    def run(*words):
        monkeypatch.setattr("sys.argv", [str(SCRIPT), str(text), *size, "--out", str(tmp_path / "out"), *words])
        module.main()
        return json.loads(next((tmp_path / "out").glob("*.json")).read_text())

    return run


def test_three_curves_in_float32(script, capsys, tmp_path):
    result = script("--steps", "6")
    assert list(result["losses"]) == ["llm.py", "PyTorch, begun one rounding apart", "PyTorch"]
    assert [len(losses) for losses in result["losses"].values()] == [6] * 3
    assert [one["of"] for one in result["differences"]][1] == ["llm.py", "PyTorch"]
    assert result["differences"][1]["largest"] < 1e-4
    assert "llm.py minus PyTorch" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files <= {"loss_curve.json", "loss_curve.png"}


def test_three_curves_of_a_llama(script, tmp_path):
    result = script("--steps", "6", "--model", "llama", "--kv-heads", "1")
    assert (result["model"]["layers"], result["model"]["kv_heads"], result["model"]["hidden"]) == (1, 1, 64)
    assert result["differences"][1]["largest"] < 1e-4
    assert (tmp_path / "out" / "loss_curve_llama.json").exists()


def test_three_curves_in_bfloat16(script, tmp_path):
    result = script("--steps", "6", "--precision", "bf16")
    names = ["llm.py, bfloat16", "PyTorch, bfloat16 (autocast)", "llm.py, float32"]
    assert list(result["losses"]) == names
    assert result["precision"] == "bfloat16"
    assert max(one["largest"] for one in result["differences"]) < 0.1
    assert (tmp_path / "out" / "loss_curve_bf16.json").exists()


def test_pytorch_in_bfloat16_learns_what_it_learns_in_float32():
    tokens = np.random.default_rng(0).integers(0, 20, 500)
    curve = loss_curve.Curve(GPT2Config(20, 8, 1, 2, 16), tokens, 2, 8, steps=5)
    with bar("training") as shown:
        wide = loss_curve.pytorch(curve, shown)
        narrow = loss_curve.pytorch(curve, shown, precision="bfloat16")
    np.testing.assert_allclose(narrow, wide, rtol=0.01)
    assert narrow != wide
