"""llmpy doctor: a line for each part, whatever is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmpy.cli import doctor, main
from llmpy.kernels import gpu_requirements
from llmpy.kernels.gpu_requirements import Part

ROOT = Path(__file__).resolve().parents[2]
CPU = [Part("numpy", "2.0")]
GPU = [Part("GPU 0", "NVIDIA H200"), Part("cuBLASLt", None, "pip install it", optional=True)]


@pytest.fixture
def parts(monkeypatch):
    def these(cpu=CPU, gpu=GPU):
        monkeypatch.setattr(doctor, "of_cpu", lambda: cpu)
        monkeypatch.setattr(gpu_requirements, "of_gpu", lambda: gpu)

    return these


@pytest.mark.parametrize(
    ("cpu", "gpu", "status", "last"),
    [
        (CPU, GPU, 0, "llmpy train uses the GPU here"),
        (CPU, [Part("Triton", None, "pip install [cuda]")], 0, "llmpy train uses the CPU here"),
        ([Part("numba", None, "pip install numba")], GPU, 0, "llmpy train uses the GPU here"),
        ([Part("numba", None, "pip install numba")], [Part("gcc", None, "apt install gcc")], 1,
         "nothing here can train yet: mend the above"),
    ],
)  # fmt: skip
def test_a_machine_is_well_that_can_train_on_something(parts, capsys, cpu, gpu, status, last):
    parts(cpu, gpu)
    assert main(["doctor"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    for part in cpu + gpu:
        state = "ok" if part.ok else "optional" if part.optional else "missing"
        assert f"  {state:8} {part.name}: {part.found or part.remedy}" in lines


def test_json_says_the_same(parts, capsys):
    parts()
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trains_on"] == "gpu"
    assert told["gpu"]["usable"]
    assert told["gpu"]["parts"] == [
        {"name": "GPU 0", "ok": True, "found": "NVIDIA H200", "optional": False},
        {"name": "cuBLASLt", "ok": False, "found": None, "optional": True, "remedy": "pip install it"},
    ]


def test_this_machine_has_what_the_cpu_needs(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "CPU: can train" in out
    assert "ok       processor: " in out
    assert "NVIDIA's driver (libcuda.so.1)" in out


def test_a_processor_that_is_asked_for_more_than_it_has_is_missing():
    environment = {**os.environ, "LLMPY_ISA": "abacus"}
    command = [sys.executable, "-m", "llmpy", "doctor"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert "missing  processor: LLMPY_ISA=abacus is not an instruction set" in done.stdout
    assert done.stderr == ""


def test_device_cuda_without_a_gpu_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(gpu_requirements.gpu_detect, "ask", lambda: None)
    gpu_requirements.missing.cache_clear()
    status = main(["train", "--device", "cuda", "--steps", "1", "--out", str(tmp_path / "run")])
    gpu_requirements.missing.cache_clear()
    assert status == 1
    error = capsys.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("llmpy: error:")]) == 1
    assert error[-1].startswith("llmpy: error: --device cuda: NVIDIA's driver (libcuda.so.1) is missing: ")
