"""Nats a token of a text: the windows it is cut into, and what the decoder foretells in them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import llmpy
from llmpy.bench import perplexity
from llmpy.bench.perplexity import NOTHING
from llmpy.formats import llama2c
from llmpy.models.llama import Llama, LlamaConfig
from llmpy.utils.progress_bar import bar

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "perplexity.py"
STORIES = [np.array([5, 6, 7]), np.array([8]), np.array([9, 10, 11, 12])]
CONFIG = LlamaConfig(61, 16, layers=2, heads=2, channels=16)


def test_a_stream_is_cut_wherever_a_window_ends():
    windows = perplexity.stream_windows(STORIES, 1, 4)
    assert windows.tokens.tolist() == [[1, 5, 6, 7], [1, 8, 1, 9]]
    assert windows.targets.tolist() == [[5, 6, 7, 1], [8, 1, 9, 10]]
    assert windows.count == 8


def test_stories_alone_are_foretold_from_beginning_to_end():
    windows = perplexity.story_windows(STORIES, 1, 3)
    assert windows.tokens.tolist() == [[1, 5, 6], [7, 1, 1], [1, 8, 1], [1, 9, 10], [11, 12, 1]]
    N = NOTHING
    assert windows.targets.tolist() == [[5, 6, 7], [1, N, N], [8, 1, N], [9, 10, 11], [12, 1, N]]
    assert windows.count == sum(len(story) + 1 for story in STORIES)


def test_no_stories_are_no_windows():
    assert perplexity.story_windows([], 1, 3).count == perplexity.stream_windows([], 1, 3).count == 0


@pytest.mark.parametrize("side_by_side", [1, 2, 5])
def test_it_is_the_loss_of_the_model(side_by_side):
    model = Llama(CONFIG, "cpu", 1, 8).initialize(3)
    model.parameters.wte[:] *= 20  # else all tokens are about as likely
    tokens = np.random.default_rng(0).integers(0, 61, (3, 9), dtype=np.int32)
    targets = tokens[:, 1:].copy()
    targets[1, 5:] = NOTHING
    windows = perplexity.Windows(tokens[:, :-1], targets)
    losses = [model.loss(x[None], y[None]) for x, y in zip(windows.tokens, targets, strict=True)]
    expected = sum(losses) * 8 / windows.count  # the model's is a mean over all 8, of which some count nothing
    with bar("reading") as shown:
        found = perplexity.nats_a_token(llmpy.Engine(model), windows, side_by_side, shown)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found > 5


def test_precisions_are_compared_to_the_first():
    rows = list(perplexity.compared({"float32": 2.0, "bfloat16": 2.02}))
    assert rows[0] == ("float32", 2.0, pytest.approx(np.exp(2)), 0)
    assert rows[1][3] == pytest.approx(0.01)


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Runs benchmarks/perplexity.py with these words on a tiny model -> what it prints."""
    spec = importlib.util.spec_from_file_location("perplexity_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = Llama(LlamaConfig(257, 16, layers=1, heads=2, channels=16), "reference").initialize()
    llama2c.write_model(tmp_path / "model.bin", model.config, model.parameters)
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(f" story {i} of many " for i in range(20)))

    def run(*words):
        files = [str(tmp_path / "model.bin"), str(tmp_path / "stories.txt")]
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *files, "--tokenizer", "bytes", "--threads", "1", *words])
        module.main()
        return capsys.readouterr().out

    return run


def test_the_script_compares_precisions(script):
    result = json.loads(script("--last", "0.5", "--cut", "stories", "--json"))
    assert list(result["nats"]) == ["float32", "bfloat16"]
    assert result["nats"]["float32"] == pytest.approx(np.log(257), rel=0.05)
    assert result["nats"]["bfloat16"] == pytest.approx(result["nats"]["float32"], rel=0.01)
    assert result["tokens"] == sum(len(f"story {i} of many") + 1 for i in range(10, 20))


def test_the_script_as_a_table(script):
    lines = script("--precision", "fp32", "--context", "7").splitlines()
    assert lines[0].endswith("tokens, stream, windows of 7")
    assert lines[2].split()[0] == "float32"
    assert lines[2].endswith("+0.000%")


@pytest.mark.parametrize("words", [["--context", "17"], ["--last", "0"], ["--context", "16", "--last", "0.01"]])
def test_what_the_script_refuses(script, words):
    with pytest.raises(llmpy.UserError):
        script(*words)
