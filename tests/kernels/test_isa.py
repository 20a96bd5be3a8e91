"""Every instruction set that this machine can run, each in a process of its own, by the tests of what stands on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmpy import UserError
from llmpy.kernels.cpu import isa

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("avx512", "avx2", "neon", "numpy")


def start_tests(name):
    tests = ["tests/kernels/test_linear.py", "tests/kernels/test_attention.py"]
    # Of attention: every head size, grouped queries, a long sequence.
    chosen = ["-k", "cpu and (linear or 129-2-2 or 2-65-4-1-24 or 1025)"]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, *chosen],
        cwd=ROOT,
        env=os.environ | {"LLMPY_ISA": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def running():
    """All of them started at once: most of the time goes to compilation, on one core each."""
    processes = {name: start_tests(name) for name in NAMES if name in isa.available() and name != isa.choose().name}
    yield processes
    for process in processes.values():
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("name", NAMES)
def test_products_and_attention_agree_with_the_reference(running, name):
    if name not in running:
        pytest.skip(
            f"{name} is what all tests run on" if name == isa.choose().name else f"this processor has no {name}"
        )
    output, _ = running[name].communicate()
    assert running[name].returncode == 0, output


def test_one_is_chosen_for_this_machine(monkeypatch):
    monkeypatch.delenv("LLMPY_ISA", raising=False)
    assert isa.choose().name == isa.available()[0]
    for name in isa.available():
        monkeypatch.setenv("LLMPY_ISA", f" {name.upper()} ")
        assert isa.choose().name == name


def test_an_unknown_one_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("LLMPY_ISA", "sse9")
    with pytest.raises(
        UserError, match=r"^LLMPY_ISA=sse9 is not an instruction set: use amx, avx512bf16, avx512, avx2, neon.*$"
    ):
        isa.choose()


def test_one_that_the_processor_lacks_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(isa, "available", lambda: ["neon", "numpy"])
    monkeypatch.setenv("LLMPY_ISA", "avx512")
    with pytest.raises(UserError, match=r"^LLMPY_ISA=avx512: this processor has no avx512; it has neon, numpy$"):
        isa.choose()


def test_the_command_line_says_it_without_a_traceback():
    result = subprocess.run(
        [sys.executable, "-m", "llmpy", "bench", "matmul"],
        cwd=ROOT,
        env=os.environ | {"LLMPY_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("llmpy: error: LLMPY_ISA=sse9 is not an instruction set")
    assert result.stderr.count("\n") == 1
