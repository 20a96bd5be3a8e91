"""The benchmark of a GPU, where there is none: what it checks, how it divides time, what it prints, what it runs."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import on_device  # noqa: F401  (before Triton is imported)

pytest.importorskip("triton")

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, children, plan, report, sections, step, targets
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.cases import attention, few_rows, of_model, timed
from benchmarks.gpu.children import Task
from llmpy import UserError
from llmpy.kernels import OPERATIONS, cuda
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.llama import LlamaConfig

ROOT = Path(__file__).resolve().parents[2]
GPT2 = GPT2Config(97, 16, 1, 3, 48)
LLAMA = LlamaConfig(97, 16, layers=1, heads=4, kv_heads=2, channels=64, hidden=96, rope_interleaved=False)
KERNELS = {
    "models": [[asdict(GPT2), 2, 16]], "logits": 16, "attention": [[1, 16, 2, 2, 16]], "sequences": [2],
    "caches": [[40, 4, 2, 16]], "matrix": [64, 96],
}  # fmt: skip
H200 = {
    "name": "NVIDIA H200", "memory_gb": 150.8, "cuda": "13.0", "peak_tflops": 989.4, "peak_gb_per_s": 4800,
    "versions": {"llmpy": "0"},
}  # fmt: skip


# ---- checks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", checks.LIMITS)
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_every_operation_of_a_model_agrees_with_the_reference(config, precision):
    rows = [checks.compared(case, precision) for case in of_model("tiny", config, 2, 10, rows=8)]
    assert [row for row in rows if not row["passed"]] == []
    assert all(row["error"] is not None for row in rows)


def test_what_is_checked_has_every_operation_of_the_contract_and_every_head_size():
    cases = [case for case, _ in checks.cases(plan.FULL.checks)]
    assert {case.operation for case in cases} == {*OPERATIONS, "attention_decode", "linear of few rows"}
    for size in (64, 80, 96, 128):
        assert {f"2 x 149 x 4{group} x {size}{turned}" for group in ("", " of 2") for turned in ("", ", turned")} == {
            case.label for case in cases if case.size == f"head {size}"
        }


def test_generation_is_checked_too():
    sizes = {"models": [], "B": 1, "T": 4, "cache": 20, "matrix": [40, 64]}
    rows = [checks.compared(*each) for each in checks.cases(sizes) if each[0].size == "generation"]
    assert {row["operation"] for row in rows} == {"attention_decode", "linear of few rows"}
    assert all(row["passed"] for row in rows)


@pytest.mark.parametrize(
    ("case", "by"),
    [
        (of_model("tiny", GPT2, 1, 10)[2], "layernorm_forward"),
        (attention("tiny", 1, 10, 2, 1, 16, rope=True)[1], "attention_backward"),
    ],
)
def test_a_result_that_is_spoiled_fails(case, by, monkeypatch):
    kernel = getattr(cuda, by)

    def spoiled(**arguments):
        kernel(**arguments)
        written = arguments["y" if by == "layernorm_forward" else "dv"]
        written[0, -1] = written[0, -1].numpy() * 1.5

    assert checks.compared(case, "float32")["passed"]
    monkeypatch.setattr(cuda, by, spoiled)
    row = checks.compared(case, "float32")
    assert not row["passed"]
    assert 1e-3 < row["error"] < 1


def test_what_is_never_written_fails_and_so_does_a_kernel_that_cannot_run(monkeypatch):
    monkeypatch.setattr(checks, "cases", lambda sizes: [(of_model("tiny", GPT2, 1, 10)[2], "float32")] * 2)
    calls = iter([lambda **arguments: None, lambda **arguments: 1 / 0])
    monkeypatch.setattr(cuda, "layernorm_forward", lambda **arguments: next(calls)(**arguments))
    count, unwritten, broken = checks.check({})
    assert count == {"cases": 2}
    assert (unwritten["passed"], unwritten["error"]) == (False, None)
    assert (broken["passed"], broken["of"]) == (False, "ZeroDivisionError: division by zero")


# ---- time, and the processes that measure --------------------------------------------------------------------------


def test_time_that_a_part_leaves_goes_to_those_after_it():
    now = [100.0]
    budget = Budget(60, {"a": 1, "b": 2, "c": 3, "d": 6}, lambda: now[0])
    assert budget.divided() == {"a": 5, "b": 10, "c": 15, "d": 30}
    assert budget.begin("a") == 5
    now[0] += 5
    assert budget.begin("b") == 10
    now[0] += 1  # 54 left, for c and d
    assert budget.begin("c") == 18
    now[0] += 100
    assert budget.begin("d") == 0


def test_a_part_that_never_begins_leaves_its_time():
    budget = Budget(60, {"a": 1, "b": 2, "c": 3}, lambda: 0.0)
    assert budget.begin("b") == 24


def test_the_whole_plan_is_within_ten_minutes():
    for each in (plan.FULL, plan.QUICK):
        assert sum(each.shares.values()) == each.seconds < 600
        assert set(each.shares) == {"card", *plan.SECTIONS}


def test_processes_that_end_or_fail():
    target, told = "tests.bench.rows:counting", []
    tasks = [
        Task("a", target, {"to": 2}),
        Task("b", target, {"to": 1, "then": "user"}),
        Task("c", target, {"to": 1, "then": "error"}),
        Task("d", "tests.bench.rows:nothing"),
        Task("e", target, {"to": 1, "then": "exit"}),
    ]
    outcomes = children.run(tasks, 100, told.append)
    assert [len(outcome.rows) for outcome in outcomes] == [2, 1, 1, 0, 1]
    assert [outcome.problem for outcome in outcomes[:3]] == [None, "no room", "ValueError: broken"]
    assert "nothing" in outcomes[3].problem
    assert outcomes[4].problem == "it ended with status 7; last words"
    assert len(told) == 5


def test_a_process_that_takes_too_long_is_stopped():
    ticks = []
    (outcome,) = children.run(
        [Task("a", "tests.bench.rows:counting", {"to": 1, "pause": 1000})], 1.5, tick=lambda: ticks.append(1)
    )
    assert outcome.problem == "stopped after 2s, which was all of its time"
    assert len(ticks) > 1


# ---- what is timed -------------------------------------------------------------------------------------------------


def test_sections_measure_what_they_are_asked_for(monkeypatch):
    """Through the processes, in Triton's interpreter: the card's ceilings and our kernels."""
    monkeypatch.setattr(children, "ENVIRONMENT", children.ENVIRONMENT | {"TRITON_INTERPRET": "1"})
    ceilings = {"copied": 2**16, "square": 64}
    tiny = plan.Plan(120, plan.FULL.shares, ceilings, 1024, kernels=KERNELS | {"sequences": [], "attention": []})
    done = []
    result = sections.Sections(tiny, ["kernels", "peers"], torch=False).run(done.append)
    assert done == ["card", "kernels"]
    assert result["stopped"] == []
    assert set(result["ceilings"]) == {"copy_gb_per_s", "gemm_tflops"}
    assert [row["key"] for row in result["kernels"]] == [case.key for case in timed(tiny.kernels)]
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in result["kernels"])
    assert result["time"] == {"card": 25, "kernels": 95}


def test_micro_batches_of_ours_are_measured_until_memory_ends(monkeypatch):
    def new_model(config, backend, B, *others):
        if B > 2:
            raise UserError(f"no room for {B}")
        return make(config, backend, B, *others)

    make = step.new_model
    monkeypatch.setattr(step, "new_model", new_model)
    rows = list(step.trained(asdict(GPT2), [1, 2, 3, 4], T=8, recompute=1, steps=3, gemm="cublas"))
    assert [(row["batch_size"], row["recompute"], row["gemm"]) for row in rows] == [(B, 1, "triton") for B in (1, 2, 3)]
    assert all(row["tokens_per_s"] > 0 and 4 < row["loss"] < 5 for row in rows[:2])
    assert rows[2]["missing"] == "no room for 3"


def test_steps_are_ours_and_the_peers_each_with_time_of_its_own(monkeypatch):
    asked = {}

    def run(tasks, seconds, heard, tick):
        (task,) = tasks
        asked[task.name] = seconds
        return [children.Outcome(task.name, [{"tokens_per_s": len(asked)}], "stopped")]

    monkeypatch.setattr(sections, "run", run)
    todo = sections.Sections(plan.FULL, ["steps"])
    todo._steps(200)
    assert list(asked) == [
        "llm.py d12 recompute 0", "llm.py d48 recompute 0", "llm.py d48 recompute 1", "PyTorch d12 B 32 flash whole",
        "PyTorch d12 B 64 flash whole", "PyTorch d12 B 64 cuDNN whole", "PyTorch d48 B 16 flash blocks",
        "PyTorch d48 B 16 flash whole",
    ]  # fmt: skip
    assert min(asked.values()) > 15
    assert len(todo.result["stopped"]) == 8
    assert targets.fastest(todo.result["steps"], "d48", True)["tokens_per_s"] == 3
    assert targets.fastest(todo.result["steps"], "d12", False)["tokens_per_s"] == 6


def test_checks_that_nobody_got_to_have_not_passed(monkeypatch):
    rows = [{"cases": 3}, {"passed": True}, {"passed": True}]
    monkeypatch.setattr(sections, "CHECKING", 1)
    monkeypatch.setattr(sections, "run", lambda tasks, *others: [children.Outcome("the checks", rows, "stopped")])
    todo = sections.Sections(plan.FULL, ["checks"])
    todo._checks(100)
    first = targets.verdicts(todo.result)[0]
    assert (first["measured"], first["verdict"]) == ("2 of 3 cases", "miss")


# ---- PyTorch -------------------------------------------------------------------------------------------------------


def test_pytorch_learns_what_ours_learns():
    pytest.importorskip("torch")
    from benchmarks.gpu import torch_step

    shape = {"config": asdict(GPT2), "B": 2, "T": 8, "steps": 3}
    theirs = [row["loss"] for row in torch_step.losses(precision="float32", device="cpu", **shape)]
    ours = [row["loss"] for row in step.losses(precision="float32", backend="cuda", **shape)]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    (row,) = torch_step.trained(attention="math", precision="float32", device="cpu", compiled="no", **shape)
    assert row["tokens_per_s"] > 0


def test_pytorch_has_something_beside_our_kernels():
    pytest.importorskip("torch")
    from benchmarks.gpu import torch_ops

    rows = list(torch_ops.times(KERNELS | {"models": [[asdict(GPT2), 2, 16], [asdict(LLAMA), 2, 16]]}, 1024, "cpu"))
    assert [row for row in rows if "missing" in row] == []
    assert len({row["key"] for row in rows}) > 30


def test_pytorch_without_a_gpu_is_one_clear_line():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from benchmarks.gpu import torch_ops

    (row,) = torch_ops.times(KERNELS, 1024)
    assert row.keys() == {"problem"}


# ---- what is printed -----------------------------------------------------------------------------------------------


def measured(speed=1.0):
    """Measurements as they may be on an H200; those of ours are `speed` times those that meet all targets."""
    heads = [("attention 1 x 16 x 2 x 64", 0.9), ("d12 2 x 2 x 2 x 128", 0.9)]
    rows = [
        {"key": f"{size} attention_{way} {label}", "size": size, "operation": f"attention_{way}", "label": label,
         "way": "", "seconds": 1e-3 / speed, "flops": 10**11, "bytes": 10**6}
        for (size, label), _ in [(key.split(" ", 1), share) for key, share in heads] for way in ("forward", "backward")
    ]  # fmt: skip
    peers = [{"key": row["key"], "name": "cuDNN", "seconds": 0.92e-3} for row in rows]
    norm = {"key": "d12 layernorm_forward 9", "size": "d12", "operation": "layernorm_forward", "label": "9", "way": ""}
    rows.append(norm | {"seconds": 1e-3 / speed, "flops": 0, "bytes": int(0.9 * 4e9)})
    rows.append(norm | {"key": "d12 linear", "way": "cublas", "missing": "no room", "flops": 1})
    ours = {
        "ours": True,
        "recompute": 0,
        "gemm": "cublas",
        "seconds": 0.1,
        "mfu": 0.5,
        "memory_gb": 49,
        "constant": True,
    }
    theirs = {"ours": False, "attention": "flash", "compiled": "whole", "seconds": 0.1, "memory_gb": 80}
    steps = [
        {"model": "d12", "batch_size": 32, "tokens_per_s": 530_000 * speed, **ours},
        {"model": "d12", "batch_size": 64, "missing": "this needs 200 GB", **ours},
        {"model": "d12", "batch_size": 32, "tokens_per_s": 470_000, **theirs},
        {"model": "d48", "batch_size": 16, "tokens_per_s": 52_000 * speed, **ours},
        {"model": "d48", "batch_size": 16, "tokens_per_s": 49_000, **theirs},
    ]
    curve = list(np.linspace(11, 9, 10))
    check = {
        "size": "d12",
        "operation": "gelu_forward",
        "label": "3 x 5",
        "precision": "float32",
        "limit": 1e-5,
        "of": "y",
    }
    return {
        "stopped": ["PyTorch d48: stopped after 60s, which was all of its time"],
        "card": H200, "time": {"card": 25}, "ceilings": {"copy_gb_per_s": 4000.0, "gemm_tflops": 700.0},
        "cases": 2,
        "checks": [
            check | {"error": 1e-7, "passed": True},
            check | {"error": None if speed < 1 else 0, "passed": speed >= 1},
        ],
        "kernels": rows, "peers": peers, "steps": steps,
        "losses": {f"{name} {precision}": [loss + far * (1 / speed - 1) for loss in curve]
                   for name, far in (("GPU", 0.1), ("CPU", 0), ("PyTorch", 0)) for precision in targets.LOSSES},
        "generation": [{"model": "d12", "precision": "q8", "what": "decoding", "tokens": 9, "tokens_per_s": 900.0}],
    }  # fmt: skip


@pytest.mark.parametrize(("speed", "verdict"), [(1.0, "pass"), (0.8, "miss")])
def test_targets_are_met_or_missed(speed, verdict):
    rows = {row["target"]: row["verdict"] for row in targets.verdicts(measured(speed))}
    assert len(rows) == 12
    of_memory = ("GPT-2 1558M, memory, recompute 0", "memory after step 0")
    assert {rows.pop(name) for name in of_memory} == {"pass"}
    assert set(rows.values()) == {verdict}, rows


def test_nothing_measured_meets_no_target():
    rows = targets.verdicts({"stopped": []})
    assert {row["verdict"] for row in rows} == {"not measured"}
    assert {row["measured"] for row in rows} == {""}


def test_everything_is_printed(capsys):
    result = measured(0.8)
    for name in ("card", *plan.SECTIONS):
        getattr(report, name)(result)
    report.targets(targets.verdicts(result), result["stopped"])
    out = capsys.readouterr().out
    for part in (
        "NVIDIA H200, 150.8 GB", "4,000 of 4,800 GB/s", "700 of 989.4 TFLOP/s", "time, in seconds: card 25",
        "FAIL gelu_forward float32, d12 3 x 5: inf", "cuDNN 0.920", "this needs 200 GB", "424,000", "no room",
        "not measured to the end: PyTorch d48: stopped after 60s", "0.736", "520,000 on an H200",
    ):  # fmt: skip
        assert part in out, part
    assert json.loads(json.dumps(result)) == result


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [["-m", "benchmarks.gpu"], ["benchmarks/gpu"]])
def test_without_a_gpu_it_says_so_in_one_line(how):
    environment = {"TRITON_INTERPRET": "1", "PATH": ""}  # which is no GPU, wherever this runs
    done = subprocess.run([sys.executable, *how], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "needs an NVIDIA GPU; llmpy doctor says what is missing" in line


def test_a_part_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="--only speed: there is no such part: use checks, kernels"):
        command.main(["--only", "speed,checks"])


def test_a_product_of_few_rows_counts_what_it_moves():
    from benchmarks.gpu import arrays, ours

    case = few_rows(2, 64, 96, "Q8_0")
    work = ours._work(case, arrays.on_device(case, "bfloat16"))
    assert work.bytes == 64 * 96 + 64 * 3 * 4 + 4 * (2 * 96 + 2 * (2 * 64) + 64)  # y is read and written
