"""The parts of the benchmark, one after the other, each in processes of its own and within its share of the time."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.cases import named
from benchmarks.gpu.children import Outcome, Task, run
from benchmarks.gpu.plan import SECTIONS, Plan
from llmpy.bench.peers import thread_settings
from llmpy.utils.progress_bar import bar

CHECKING = 8  # processes at most: most of the time goes into compiling, which each does on one core


def _share(task: Task) -> float:
    """The share of a task in the time for steps; PyTorch spends most of its share compiling."""
    if "batches" in task.arguments:
        return 3.0 + 0.5 * len(task.arguments["batches"])
    return 5.0 if task.arguments["config"]["layers"] > 12 else 2.5


class Sections:
    """Runs the parts that are asked for; `.result` has what they measured, whatever became of the others."""

    def __init__(self, plan: Plan, only: Collection[str] = SECTIONS, gemm: str = "cublas", torch: bool = True) -> None:
        self.plan, self.gemm, self.torch = plan, gemm, torch
        asked = set(only) | ({"kernels"} if "peers" in only else set())  # which it is beside
        self.names = ["card", *(name for name in SECTIONS if name in asked and (torch or name != "peers"))]
        self.result: dict[str, Any] = {"stopped": []}

    def run(self, show: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
        """Runs all sections and returns the result; calls `show` with the name of each finished section."""
        budget = Budget(self.plan.seconds, {name: self.plan.shares[name] for name in self.names})
        self.result["time"] = {name: round(seconds) for name, seconds in budget.divided().items()}
        for name in self.names:
            getattr(self, f"_{name}")(budget.begin(name))
            show(name)
        return self.result

    def _do(self, what: str, tasks: Sequence[Task], seconds: float, total: float | None = None) -> list[Outcome]:
        """Tasks at the same time, with a bar; what went wrong is kept."""
        with bar(what, total, "results") as shown:
            outcomes = run(tasks, seconds, lambda row: shown.advance(), lambda: shown.advance(0))
        for outcome in outcomes:
            if outcome.problem:
                self.result["stopped"].append(f"{outcome.name}: {outcome.problem}")
        return outcomes

    def _rows(self, *arguments: Any) -> list[dict[str, Any]]:
        return [row for outcome in self._do(*arguments) for row in outcome.rows]

    # ---- each of them ----------------------------------------------------------------------------------------------

    def _card(self, seconds: float) -> None:
        task = Task(
            "the card's ceilings", "benchmarks.gpu.card:ceilings", self.plan.ceilings | {"flush": self.plan.flush}
        )
        rows = self._rows("measuring the card's ceilings", [task], seconds, 2)
        self.result["ceilings"] = {name: value for row in rows for name, value in row.items()}

    def _checks(self, seconds: float) -> None:
        """Runs the checks, untimed: all cores compile, also for the steps of the peers."""
        parts = max(1, min(CHECKING, (os.cpu_count() or 1) // 2))
        asked = [{"sizes": self.plan.checks, "part": part, "parts": parts} for part in range(parts)]
        tasks = [Task("the checks", "benchmarks.gpu.checks:check", each, thread_settings(2)) for each in asked]
        if self.torch and "steps" in self.names:
            todo = [task.arguments | {"steps": 1} for task in self._peer_steps()]
            tasks.append(Task("compiling PyTorch's steps", "benchmarks.gpu.torch_step:compiled", {"todo": todo}))
        outcomes = self._do("checking against float64", tasks, seconds)
        rows = [row for outcome in outcomes[:parts] for row in outcome.rows]
        self.result["cases"] = sum(row["cases"] for row in rows if "cases" in row)
        self.result["checks"] = [row for row in rows if "cases" not in row]

    def _kernels(self, seconds: float) -> None:
        task = Task("our kernels", "benchmarks.gpu.ours:times", {"sizes": self.plan.kernels, "flush": self.plan.flush})
        self.result["kernels"] = self._rows("timing our kernels", [task], seconds)

    def _peers(self, seconds: float) -> None:
        sizes = {"sizes": self.plan.kernels, "flush": self.plan.flush}
        task = Task("PyTorch's kernels", "benchmarks.gpu.torch_ops:times", sizes)
        self.result["peers"] = self._rows("timing PyTorch's kernels", [task], seconds)

    def _steps(self, seconds: float) -> None:
        """Ours with each micro-batch until memory ends, then PyTorch's."""
        ours = self._our_steps()
        tasks = [*ours, *(self._peer_steps() if self.torch else [])]
        budget = Budget(seconds, {task.name: _share(task) for task in tasks})
        self.result["steps"] = []
        for task in tasks:
            rows = self._rows(f"measuring steps: {task.name}", [task], budget.begin(task.name))
            model = next(model for model in (self.plan.small, self.plan.large) if model and f" {model} " in task.name)
            self.result["steps"] += [{"model": model, "ours": task in ours, **row} for row in rows]

    def _our_steps(self) -> list[Task]:
        asked = [(self.plan.small, list(self.plan.micro_batches), 0)]
        if self.plan.large is not None:
            asked += [(self.plan.large, [self.plan.large_batch], recompute) for recompute in (0, 1)]
        return [
            Task(f"llm.py {model} recompute {recompute}", "benchmarks.gpu.step:trained", {
                "config": asdict(named(model)[1]), "batches": batches, "T": self.plan.sequence_length,
                "recompute": recompute, "steps": self.plan.steps, "gemm": self.gemm,
            })
            for model, batches, recompute in asked
        ]  # fmt: skip

    def _peer_steps(self) -> list[Task]:
        """The large model compiled block by block, too: as a whole that may take longer than there is time."""
        asked = [(self.plan.small, B, attention, "whole") for B, attention in self.plan.peer_steps]
        if self.plan.large is not None:
            asked += [(self.plan.large, self.plan.large_batch, "flash", how) for how in ("blocks", "whole")]
        return [
            Task(f"PyTorch {model} B {B} {attention} {how}", "benchmarks.gpu.torch_step:trained", {
                "config": asdict(named(model)[1]), "B": B, "T": self.plan.sequence_length,
                "steps": self.plan.steps, "attention": attention, "compiled": how,
            })
            for model, B, attention, how in asked
        ]  # fmt: skip

    def _losses(self, seconds: float) -> None:
        """Computes all loss curves at the same time: they are compared, not timed."""
        model, B, T, steps = self.plan.losses
        fixed, tasks = {"config": asdict(named(model)[1]), "B": B, "T": T, "steps": steps}, []
        for precision in ("float32", "bfloat16"):
            for backend, name in (("cuda", "GPU"), ("cpu", "CPU")):
                more = {"precision": precision, "backend": backend}
                tasks.append(Task(f"{name} {precision}", "benchmarks.gpu.step:losses", fixed | more))
            if self.torch:
                more = {"precision": precision}
                tasks.append(Task(f"PyTorch {precision}", "benchmarks.gpu.torch_step:losses", fixed | more))
        outcomes = self._do("ten steps on the same batch", tasks, seconds, len(tasks) * steps)
        self.result["losses"] = {outcome.name: [row["loss"] for row in outcome.rows] for outcome in outcomes}

    def _generation(self, seconds: float) -> None:
        budget = Budget(seconds, dict.fromkeys(self.plan.generated, 1.0))
        self.result["generation"] = []
        for model in self.plan.generated:
            task = Task(f"generating with {model}", "benchmarks.gpu.generation:speeds", {
                "config": asdict(named(model)[1]), "precisions": list(self.plan.precisions),
                "tokens": self.plan.tokens, "prompt": self.plan.prompt,
            })  # fmt: skip
            rows = self._rows(task.name, [task], budget.begin(model), 2 * len(self.plan.precisions))
            self.result["generation"] += [{"model": model, **row} for row in rows]
