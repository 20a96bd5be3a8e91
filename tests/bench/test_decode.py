"""Generating, measured: the models and the peers of it, faked by tiny programs."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import llmpy
from llmpy import UserError
from llmpy.bench import decode, decode_peers, peers, report, roofline, timing
from llmpy.cli import main
from llmpy.formats import llama2c
from llmpy.kernels import cpu
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import Llama, LlamaConfig

LLAMA = LlamaConfig(61, 20, layers=2, heads=3, channels=24)
OTHERS = [LlamaConfig(61, 20, layers=1, heads=2, channels=16, rope_interleaved=False), GPT2Config(61, 20, 1, 2, 16)]
RUN = """#!/bin/sh
echo "$@" >> {log}
echo "story"
echo "achieved tok/s: {speed}" >&2
exit {status}
"""
LLAMA_CPP = """
class Llama:
    def __init__(self, path, **sizes):
        assert path.endswith(".gguf") and sizes["n_threads"] == 1, (path, sizes)
    def n_vocab(self):
        return 61
    def reset(self): ...
    def eval(self, ids):
        assert len(ids) == 7
    def generate(self, ids, top_k, temp):
        assert (len(ids), temp) == (1, 0.0)
        while True:
            yield 5
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Short turns; and the threads of this process are afterwards what they were."""
    for module, name, value in ((timing, "PAUSE", 0.0), (timing, "QUICK", 0.005), (roofline, "SECONDS", 0.005)):
        monkeypatch.setattr(module, name, value)
    yield
    cpu.set_threads()


@pytest.fixture
def model(tmp_path):
    return str(decode.write_random(LLAMA, tmp_path))


@pytest.fixture
def binary(tmp_path):
    """A program in the place of llama2.c's -> its path."""

    def make(speed="1000.0", status=0, name="run"):
        path = tmp_path / name
        path.write_text(RUN.format(log=tmp_path / "log", speed=speed, status=status))
        path.chmod(0o755)
        return path

    return make


def bench(capsys, *words):
    """Runs `llmpy bench decode` for one round -> its result."""
    status = main(["bench", "decode", *words, "--rounds", "1", "--threads", "1", "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


@pytest.mark.parametrize("config", [LLAMA, *OTHERS])
def test_a_random_model_is_loaded_as_any_other(tmp_path, config):
    loaded = llmpy.load(decode.write_random(config, tmp_path))
    assert (loaded.config.layers, loaded.config.channels) == (config.layers, config.channels)
    assert 0.015 < loaded.parameters.wte[2:61].std() < 0.025
    assert (loaded.parameters.ln1w == 1).all()


def test_a_random_model_never_ends_a_text(model):
    ids = [step[0] for step in llmpy.Engine(llmpy.load(model)).generate([1], 20, temperature=0.0)]
    assert len(ids) == 20
    assert 1 not in ids[1:]


def test_ours_alone(capsys, model):
    result = bench(capsys, "--model", model, "-n", "9")
    assert (result["benchmark"], result["source"], result["tokens"], result["prompt"]) == ("decode", model, 9, 0)
    assert 0 < result["slowest"] <= result["tokens_per_s"] <= result["fastest"]
    assert result["peer"] is result["speedup"] is None
    memory = result["memory"]
    weights = 61 * 24 + 2 * (4 * 24 * 24 + 3 * 24 * LLAMA.hidden)
    assert memory["weight_bytes"] == 4 * weights
    assert memory["cache_bytes"] == 4 * 2 * 2 * 24 * 9 // 2
    assert memory["share"] > 0


def test_bfloat16_halves_what_is_read():
    work = decode.Generation("", None, 1, tokens=8, batch_size=3)
    model = Llama(LLAMA, "reference")
    loaded = SimpleNamespace(config=LLAMA, stored=StoredWeights.of(model.parameters, LLAMA))
    narrow, wide = (decode.bytes_read(llmpy.Engine(loaded, precision=name), work) for name in ("bfloat16", "stored"))
    assert wide == {name: 2 * count for name, count in narrow.items()}


def test_more_tokens_than_positions_are_not_made(capsys, model):
    assert bench(capsys, "--model", model, "-n", "300")["tokens"] == 20


def test_every_prompt_is_another():
    work = decode.Generation("", None, 1, prompt=9)
    prompts = [work.prompt_ids(61, number).tolist() for number in (0, 1, 0)]
    assert prompts[0] == prompts[2] != prompts[1]
    assert decode.Generation("", None, 1).prompt_ids(61).tolist() == [1]


def test_texts_side_by_side_beside_one_alone(capsys, model):
    result = bench(capsys, "--model", model, "-n", "5", "--batch-size", "3")
    assert [one["name"] for one in result["peers"]] == ["one text alone"]
    assert result["speedup"] == pytest.approx(result["tokens_per_s"] / result["peers"][0]["tokens_per_s"], rel=0.01)


def test_a_shape_with_flags_and_a_prompt(capsys):
    words = ["--model", "llama:260K", "--layers", "1", "--channels", "32", "--heads", "2", "--prompt", "600"]
    result = bench(capsys, *words, "--precision", "bf16")
    assert (result["model"]["channels"], result["model"]["kv_heads"], result["model"]["context"]) == (32, 2, 600)
    assert (result["prompt"], result["precision"], result["memory"]) == (600, "bfloat16", None)
    assert result["tokens_per_s"] > 0


def test_beside_llama2c(capsys, model, binary, tmp_path):
    result = bench(capsys, "--model", model, "-n", "9", "--against", "llama2c", "--binary", str(binary()))
    peer = result["peers"][0]
    assert (result["peer"], peer["tokens_per_s"]) == ("llama2.c's run", 1000)
    assert result["speedup"] == pytest.approx(result["tokens_per_s"] / 1000, rel=0.01)
    words = (tmp_path / "log").read_text().splitlines()[0].split()
    assert words[1:6] == ["-t", "0", "-n", "9", "-z"]


@pytest.mark.parametrize(("name", "version"), [("run", 0), ("runq", 2)])
def test_what_llama2c_is_given(model, binary, tmp_path, name, version):
    work = decode.Generation(model, None, 1, tokens=4)
    with decode_peers.Llama2c(binary(name=name)).contestant(work, tmp_path) as contestant:
        assert contestant.turn() == pytest.approx(1 / 1000)
        file = llama2c.Llama2cFile(tmp_path / "peer.bin")
        assert (file.version, file.config) == (version, LLAMA)
    _, parameters = llama2c.read_model(tmp_path / "peer.bin")
    np.testing.assert_allclose(parameters.wte, llmpy.load(model).parameters.wte, atol=1e-3)
    assert (tmp_path / "vocabulary.bin").stat().st_size > 61 * 8


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ({"status": 3}, r"reached no speed \(exit status 3\)"),
        ({"speed": "inf"}, "was done within a millisecond"),
    ],
)
def test_a_program_that_fails_is_told_of(model, binary, tmp_path, program, message):
    peer = decode_peers.Llama2c(binary(**program))
    with (
        peer.contestant(decode.Generation(model, None, 1), tmp_path) as contestant,
        pytest.raises(UserError, match=message),
    ):
        contestant.turn()


@pytest.mark.parametrize("prompt", [0, 7])
def test_beside_llamacpp(tmp_path, monkeypatch, prompt):
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    monkeypatch.setitem(timing.ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    work = decode.Generation("some.gguf", None, 1, tokens=5, prompt=prompt)
    with decode_peers.LlamaCpp(sys.executable).contestant(work, tmp_path) as contestant:
        assert contestant.turn() > 0


def test_a_python_without_llama_cpp(tmp_path):
    work = decode.Generation("some.gguf", None, 1)
    with (
        pytest.raises(UserError, match=r"has no llama_cpp: pip install llama-cpp-python, or --python PATH"),
        decode_peers.LlamaCpp(sys.executable).contestant(work, tmp_path),
    ):
        pass


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_pytorch_reads_the_prompt(model, tmp_path, precision):
    torch = pytest.importorskip("torch")
    work = decode.Generation(model, precision, 1, prompt=7)
    with decode_peers.Torch(peers.Peer("PyTorch", False, {})).contestant(work, tmp_path) as contestant:
        assert contestant.turn() > 0
    from llmpy.bench.torch_peer.llama import TorchLlama

    loaded = llmpy.load(model)
    ids = work.prompt_ids(61)
    theirs = TorchLlama(loaded.config).load(loaded.parameters).last_logits(torch.from_numpy(ids).long()[None])
    step = next(llmpy.Engine(loaded).generate(ids, 1, temperature=0.0))
    assert step == [theirs.argmax().item()]


@pytest.mark.parametrize("module", ["torch_peer.prefill", "llamacpp", "train", "matmul", "attention"])
def test_what_runs_a_peer_loads_none_of_our_kernels(module):
    pytest.importorskip("torch")
    code = f"import sys, llmpy.bench.{module}; sys.exit('llmpy.kernels.cpu' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=timing.ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "llama2c"], "--against llama2c needs --binary PATH"),
        (["--against", "llama2c", "--binary", "nothing"], "--binary nothing: there is no such program"),
        (["--against", "llamacpp"], "llama.cpp reads GGUF files"),
        (["--against", "llama2c", "--prompt", "5", "--binary", "x"], "llama2.c reads a prompt token by token"),
        (["--batch-size", "2", "--prompt", "3"], "texts side by side are measured beside one alone"),
        (["--prompt", "21"], "a prompt of 21 tokens: the model's context is 20"),
        (["-n", "1"], "generating is timed from the second token on"),
        (["--layers", "3"], "has a shape of its own: leave out --layers"),
        (["--profile"], "--profile is of a training step"),
    ],
)
def test_what_cannot_be_measured_is_said(capsys, model, words, message):
    assert main(["bench", "decode", "--model", model, *words]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("llmpy: error: ")
    assert message in error


@pytest.mark.parametrize("words", [["--against", "llama2c"], ["--precision", "q8"]])
def test_what_is_of_generating_alone(capsys, words):
    assert main(["bench", "train", *words]) == 1
    assert "is of generating: llmpy bench decode, not train" in capsys.readouterr().err


def test_the_result_for_a_person(capsys):
    speed = {"tokens_per_s": 500.0, "slowest": 400.0, "fastest": 600.0}
    result = {"benchmark": "decode", "source": "model.bin", "precision": None, "tokens": 256, "batch_size": 1, **speed}
    result |= {"prompt": 0, "peer": "llama.cpp", "speedup": 2.0}
    result["peers"] = [{"name": "llama.cpp", **speed, "tokens_per_s": 250.0, "speedup": 2.0}]
    result["memory"] = {
        "weight_bytes": 10**7,
        "cache_bytes": 10**6,
        "gb_per_s": 5.5,
        "machine_gb_per_s": 11,
        "share": 0.5,
    }
    result["machine"] = {"cpu": "x", "cores": 2, "threads": 2, "isa": "avx2", "memory_gb": 1, "system": "Linux"}
    result["machine"] |= {"python": "3", "versions": {}}
    report.show(result)
    out = capsys.readouterr().out
    assert "generating 256 tokens, greedily: model.bin, the engine's own precision" in out
    assert "2.000 times the speed of llama.cpp" in out
    assert "10.0 MB of weights and 1.0 MB of keys and values: 5.5 GB/s, 50 % of the 11.0 GB/s" in out
    assert out.isascii()
