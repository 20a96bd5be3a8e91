import json

import numpy as np
import pytest

from llmpy.bench import matmul, peers, report, roofline, timing
from llmpy.cli import main
from llmpy.kernels import cpu
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.presets import from_descriptor

TINY = ["--layers", "1", "--heads", "2", "--channels", "16", "--vocab-size", "61", "--rounds", "1"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Short turns; and the threads of this process are afterwards what they were."""
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "QUICK", 0.005)
    monkeypatch.setattr(roofline, "SECONDS", 0.005)
    yield
    cpu.set_threads()


def bench(capsys, *words):
    """Runs `llmpy bench`, without any error -> what it prints to stdout."""
    status = main(["bench", *words])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def test_a_step_of_ours_alone(capsys):
    result = json.loads(bench(capsys, "train", *TINY, "-b", "2", "-t", "8", "--threads", "1", "--json"))
    assert result["benchmark"] == "train"
    assert result["model"]["channels"] == 16
    assert result["precision"] == "float32"
    assert result["ours_ms"] > 0
    assert result["tokens_per_s"] == pytest.approx(2 * 8 / result["ours_ms"] * 1e3, rel=1e-3)
    assert result["peak_mb"] > 10
    assert result["peer_ms"] is result["ratio"] is result["peer"] is None
    machine = result["machine"]
    assert machine["threads"] == 1
    assert {"cpu", "cores", "isa", "memory_gb", "python", "versions"} <= set(machine)
    assert machine["versions"]["numba"]
    assert "profile" not in result


def test_where_the_time_of_a_step_goes(capsys):
    words = ["train", *TINY, "--layers", "3", "-b", "2", "-t", "8", "--clip", "1", "--profile", "--json"]
    profile = json.loads(bench(capsys, *words))["profile"]
    operations = {one["operation"]: one for one in profile["operations"]}
    assert sum(one["share"] for one in operations.values()) == pytest.approx(1, abs=0.01)
    assert list(operations)[-1] == "everything else (Python)"
    for OC, C in ((48, 16), (16, 16), (64, 16), (16, 64)):
        forward, backward = (operations[f"linear_{way} {OC} x {C}"] for way in ("forward", "backward"))
        assert forward["calls"] == backward["calls"] == 3
        assert forward["flops"] == 3 * 2 * (2 * 8) * OC * C
        assert backward["flops"] == 2 * forward["flops"]
    assert {"adamw", "global_norm", "attention_forward", "attention_backward", "classifier_backward"} <= set(operations)
    assert {one["bound"] for one in operations.values() if "bound" in one} <= {"products", "memory"}
    assert min(profile["ceilings"].values()) > 0
    assert profile["step_ms"] > 0


def test_the_profile_as_a_table(capsys):
    out = bench(capsys, "train", *TINY, "-b", "2", "-t", "8", "--profile")
    lines = [line.split() for line in out.splitlines()]
    title = next(i for i, line in enumerate(lines) if line[:2] == ["where", "a"])
    assert "this machine's ceilings: products" in out
    assert out.splitlines()[title + 1].startswith("operation")
    names = [line[0] for line in lines[title + 2 : -1]]
    assert names[-1] == "everything"
    assert {"adamw", "layernorm_forward", "linear_backward"} <= set(names)
    assert out.isascii()


def test_a_step_beside_pytorch(capsys):
    pytest.importorskip("torch")
    words = ["train", *TINY, "-b", "2", "-t", "8", "-r", "2", "--clip", "1", "--against", "torch", "--json"]
    result = json.loads(bench(capsys, *words, "--peer-mode", "installed", "--no-compile"))
    assert result["peer"] == "PyTorch installed, eager"
    assert result["ratio"] == pytest.approx(result["ours_ms"] / result["peer_ms"], rel=1e-2)
    assert result["peer_peak_mb"] > result["peak_mb"] / 10
    assert [peer["name"] for peer in result["peers"]] == [result["peer"]]
    assert result["machine"]["versions"]["torch"]


def test_products(capsys):
    words = ["matmul", *TINY, "--rows", "5,300", "--json"]
    result = json.loads(bench(capsys, *words))
    products = [(p["layer"], p["kind"], p["rows"]) for p in result["products"]]
    kinds = ("forward", "dx", "dw")
    layers = ["qkv", "attproj", "fc", "fcproj"]
    few, many = [*layers, "head"], layers  # logits exist 256 rows at a time
    assert products == [(layer, kind, n) for n, some in ((5, few), (300, many)) for layer in some for kind in kinds]
    assert result["peer"] == "NumPy"
    ratios = sorted(p["ratio"] for p in result["products"])
    assert ratios[0] <= result["ratio"] <= ratios[-1] == result["worst_ratio"]
    assert set(result["products"][0]["gflops"]) == {"llm.py", "NumPy"}
    one = result["products"][-1]
    assert one["share_of_ceiling"] == pytest.approx(one["gflops"]["llm.py"] / result["ceilings"]["gflops"], rel=0.1)


@pytest.mark.parametrize("what", ["train", "matmul", "attention"])
def test_bfloat16_beside_pytorch(capsys, what):
    pytest.importorskip("torch")
    size = ["--rows", "5"] if what == "matmul" else ["-b", "2", "-t", "8"]
    words = [what, *TINY, *size, "--precision", "bf16", "--against", "torch", "--peer-mode", "installed"]
    result = json.loads(bench(capsys, *words, "--no-compile", "--json"))
    assert result["precision"] == "bfloat16"
    assert result["peer"].startswith("PyTorch")
    assert result["ratio"] > 0
    if what == "matmul":
        assert set(result["products"][0]["gflops"]) == {"llm.py", "PyTorch"}


@pytest.mark.parametrize("what", ["train", "matmul", "attention"])
def test_a_llama_beside_pytorch(capsys, what):
    pytest.importorskip("torch")
    size = {"train": ["-b", "2", "-t", "8", "--profile"], "matmul": ["--rows", "5"], "attention": ["-t", "8"]}[what]
    words = [what, "--model", "llama:260K", "--layers", "1", *size, "--threads", "1", "--rounds", "1"]
    words += ["--against", "torch", "--peer-mode", "installed", "--no-compile", "--json"]
    result = json.loads(bench(capsys, *words))
    assert result["ratio"] > 0
    if what == "train":
        operations = {one["operation"]: one for one in result["profile"]["operations"]}
        assert {"rmsnorm_backward", "swiglu_backward", "linear_forward 344 x 64"} <= set(operations)
        assert operations["linear_forward 128 x 64"]["flops"] == 2 * (2 * 8) * 128 * 64  # 8 heads, and 4 of k and v
    if what == "attention":
        assert (result["lengths"][0]["NH"], result["lengths"][0]["NKV"]) == (8, 4)


def test_a_precision_that_there_is_not(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "train", *TINY, "--precision", "fp16"])
    assert stopped.value.code == 2
    assert "'fp16' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("faster", [True, False])
def test_the_precision_that_is_faster_here(capsys, monkeypatch, faster):
    monkeypatch.setattr(cpu, "bfloat16_is_faster", lambda: faster)
    words = ["train", *TINY, "-b", "2", "-t", "8", "--threads", "1", "--json", "--precision", "auto"]
    assert json.loads(bench(capsys, *words))["precision"] == ("bfloat16" if faster else "float32")


def test_all_contestants_of_a_product_compute_the_same_in_bfloat16():
    threads = pytest.importorskip("torch").get_num_threads()
    for product in matmul.products(GPT2Config(61, 8, 1, 2, 16), [7], "bfloat16"):
        ours = np.asarray(matmul.our_product(vars(product), threads)(), np.float32)
        torch = matmul.pytorch_product(vars(product), threads)().float().numpy()
        np.testing.assert_allclose(ours, torch, rtol=0.02, atol=0.05)


def test_products_of_gpt2_124m():
    found = matmul.products(from_descriptor("d12"), [256, 4096])
    assert len(found) == 3 * (5 + 4)
    assert max(product.flops for product in found) == 2 * 256 * 50257 * 768
    assert found[0].OC == 3 * 768


def test_attention_at_two_lengths(capsys):
    pytest.importorskip("torch")
    words = ["attention", *TINY, "-b", "1", "-t", "8,20", "--against", "torch", "--peer-mode", "installed", "--json"]
    result = json.loads(bench(capsys, *words))
    assert [one["T"] for one in result["lengths"]] == [8, 20]
    assert result["ratio"] == max(one["ratio"] for one in result["lengths"])


def test_all_contestants_of_a_product_compute_the_same():
    threads = pytest.importorskip("torch").get_num_threads()
    for product in matmul.products(GPT2Config(61, 8, 1, 2, 16), [7]):
        ours, numpy, torch = (
            np.asarray(target(vars(product), threads)())
            for target in (matmul.our_product, matmul.numpy_product, matmul.pytorch_product)
        )
        np.testing.assert_allclose(ours, numpy, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(torch, numpy, rtol=1e-4, atol=1e-4)


def test_tables_in_a_pipe_are_plain(capsys):
    out = bench(capsys, "attention", *TINY, "-b", "1", "-t", "8")
    lines = out.splitlines()
    assert lines[0] == "causal attention of one layer, forward and backward, float32"
    assert lines[1].split("  ")[0] == "B, T, NH, hs"
    assert lines[2].startswith("1, 8, 2, 8 ")
    assert "cores" in lines[-1]
    assert out.isascii()


def test_a_peer_that_could_not_run_is_named(capsys):
    peer = {"name": "PyTorch tuned, eager", "ours_ms": 1.0, "peer_ms": 2.0, "ratio": 0.5, "peer_peak_mb": 3.0}
    result = {
        "benchmark": "train",
        "model": vars(GPT2Config()),
        "batch_size": 4,
        "sequence_length": 64,
        "recompute": 0,
        "precision": "float32",
        "ours_ms": 1.0,
        "peak_mb": 2.0,
        "peer": peer["name"],
        "ratio": 0.5,
        "tokens_per_s": 256000.0,
        "peers": [peer, {"name": "PyTorch tuned, compiled", "error": "no compiler"}],
        "machine": {
            "cpu": "x",
            "cores": 2,
            "threads": 2,
            "isa": "avx2",
            "memory_gb": 1,
            "system": "Linux",
            "python": "3",
        }
        | {"versions": {}},
    }
    report.show(result)
    captured = capsys.readouterr()
    assert "PyTorch tuned, compiled was left out: no compiler" in captured.err
    assert "against PyTorch tuned, eager, the peer that counts: 0.500 of its time" in captured.out


def test_without_pytorch_it_is_one_clear_line(capsys, monkeypatch):
    monkeypatch.setattr(peers, "version_of", lambda package: None)
    for what in ("train", "matmul", "attention"):
        assert main(["bench", what, *TINY, "--against", "torch"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert (
            captured.err
            == "llmpy: error: PyTorch is not installed here: leave out --against torch, or pip install torch\n"
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "-t", "8,16"], "a training step has one --sequence-length: give one number"),
        (["matmul", "--profile"], "--profile is of a training step: llmpy bench train --profile, not matmul"),
        (["train", "--heads", "5"], "16 channels cannot be shared by 5 heads"),
        (["train", "--model", "d7"], "no model is named 'd7'"),
        (["train", "--threads", "4096"], "--threads 4096: this machine offers"),
        (["train", "-b", "1000000000"], "GB of memory"),
    ],
)
def test_what_cannot_be_measured_is_said(capsys, words, message):
    assert main(["bench", *TINY, *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("llmpy: error: ")


@pytest.mark.parametrize(
    "words", [["train", "-b", "0"], ["train", "-t", "x"], ["fly"], [], ["train", "--precision", "fp4"]]
)
def test_wrong_usage(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    assert stopped.value.code == 2
    assert "usage: llmpy bench" in capsys.readouterr().err
