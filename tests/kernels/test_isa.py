"""Every instruction set that this machine can run, each in a process of its own, by the tests of what stands on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmpy import UserError, kernels
from llmpy.kernels import cpu
from llmpy.kernels.cpu.jit import isa

ROOT = Path(__file__).resolve().parents[2]
# Each is compiled for minutes after any change of the kernels. Of those that share a kind of tile, one is enough as a
# rule: avx2 has vectors of its own width, numpy no product of ours in float32, and amx-emulated the matrix tiles.
OFTEN = ("avx2", "numpy", "amx-emulated")
NAMES = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in isa.INSTRUCTION_SETS]
FILES = ("linear", "attention", "bfloat16", "bfloat16_attention", "decode", "dequantize", "gemv", "packed_weight")
# Of attention: every head size, grouped queries, a long sequence, queries of a text's end.
ATTENTION = "129-2-2 or 2-65-4-1-24 or 1025 or last_tokens"
CHOSEN = (
    f"cpu and (linear or {ATTENTION}) or "
    f"bfloat16 and (linear or operands or deeper or every_float32 or {ATTENTION}) or a_packed_weight or "
    "dequantize or gemv or decode"
)
# Python for every instruction: few shapes, and bfloat16 alone.
CHOSEN_SLOWLY = (
    "linear and bfloat16 and (plain or gelu) and (1-1-1 or 4-49-257 or 33-257-131 or 9-4099) or operands and 35-66"
    " or bfloat16_attention and (2-65-4-1-24 or 129-2-2-40 or 1-17-49) or a_packed_weight"
    " or dequantize and (bfloat16 and (9-2-49 or 9-1024) or exactly)"
    " or decode and 3-Q8_0"
)


def start_tests(name):
    files = [f"tests/kernels/test_{file}.py" for file in FILES]
    chosen = CHOSEN_SLOWLY if name == "amx-emulated" else CHOSEN
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", chosen],
        cwd=ROOT,
        env=os.environ | {"LLMPY_ISA": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def running(request):
    """All that are asked for started at once: most of the time goes to compilation, on one core each."""
    asked = [item.callspec.params["name"] for item in request.session.items if "running" in item.fixturenames]
    processes = {name: start_tests(name) for name in asked if name in isa.available() and name != isa.choose().name}
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


# ---- AMX that is there and may not be used -----------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch):
    """A processor with AMX whose system refuses it, as some virtual machines do."""
    features = {"avx512f": True, "avx512bf16": True, "avx2": True, "fma": True, "amx-tile": True, "amx-bf16": True}
    monkeypatch.setattr(isa.binding, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(isa.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(isa, "amx_is_permitted", lambda: False)
    monkeypatch.delenv("LLMPY_ISA", raising=False)
    return monkeypatch


def test_without_permission_it_goes_on_without(refused):
    assert "amx" not in isa.available()
    assert isa.choose().name == isa.available()[0] != "amx"
    refused.setattr(isa, "amx_is_permitted", lambda: True)
    assert isa.choose().name == "amx"
    assert isa.notice() is None


def test_it_is_said_when_the_kernels_are_made_ready(refused, capsys):
    refused.setattr(cpu, "compile_all", lambda *_: None)
    for _ in range(2):
        kernels.start("cpu")
    assert capsys.readouterr().err.count(isa.AMX_REFUSED) == 1
    refused.setenv("LLMPY_ISA", "avx512")  # who chooses knows
    assert isa.notice() is None


def test_asked_for_by_name_it_is_one_clear_line(refused):
    refused.setenv("LLMPY_ISA", "amx")
    with pytest.raises(UserError, match=r"^LLMPY_ISA=amx: this machine has AMX, but its system .*; use LLMPY_ISA=av"):
        isa.choose()


def test_a_processor_without_it_is_said_to_have_none(refused):
    refused.setattr(isa.binding, "get_host_cpu_features", lambda: {"avx2": True, "fma": True})
    refused.setenv("LLMPY_ISA", "amx")
    with pytest.raises(UserError, match=r"^LLMPY_ISA=amx: this processor has no amx; it has avx2, "):
        isa.choose()
    assert isa.notice() is None


def test_the_system_is_asked_for_the_tiles(monkeypatch):
    """It refuses where there is no Linux, no AMX, or no such call."""
    assert isa.amx_is_permitted() in (True, False)
    monkeypatch.setattr(isa.sys, "platform", "darwin")
    assert not isa.amx_is_permitted()


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
