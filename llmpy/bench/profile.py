"""Profile of a training step: the time of each kernel operation, and its share of the machine's ceiling."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from llmpy.bench import roofline, timing
from llmpy.bench.flop_count import work_of
from llmpy.bench.train import Step, our_step
from llmpy.kernels import Backend, reference
from llmpy.utils.progress_bar import bar

REST = "everything else (Python)"


@dataclass
class Line:
    """Totals of all calls of one operation in a step."""

    operation: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    bytes: int = 0


class ProfiledKernels:
    """A backend with the same attributes, which keeps a record of every call that is made through it.

    An operation that calls another one inside its backend is one call, the outer one.
    """

    def __init__(self, kernels: Backend) -> None:
        self._kernels = kernels
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any], float]] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)
        if not callable(function) or inspect.isclass(function):
            return function

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            returned = function(*args, **kwargs)
            self.calls.append((name, args, kwargs, time.perf_counter() - start))
            return returned

        setattr(self, name, call)  # from now on found without coming here
        return call

    def lines(self) -> list[Line]:
        """Returns the totals by operation; counted here, outside the timed part."""
        lines: dict[str, Line] = {}
        for name, args, kwargs, seconds in self.calls:
            bound = _signature(name, getattr(self._kernels, name)).bind(*args, **kwargs)
            bound.apply_defaults()
            work = work_of(name, bound.arguments)
            line = lines.setdefault(work.label, Line(work.label))
            line.calls, line.seconds = line.calls + 1, line.seconds + seconds
            line.flops, line.bytes = line.flops + work.flops, line.bytes + work.bytes
        return list(lines.values())


def _signature(operation: str, function: Callable[..., Any]) -> inspect.Signature:
    """Signature of an operation; for a wrapper with *args, the signature of the reference."""
    own = inspect.signature(function)
    if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in own.parameters.values()):
        return own
    return inspect.signature(getattr(reference, operation, function))


def our_profiled_steps(step: dict[str, Any]) -> Callable[[], list[dict[str, Any]]]:
    """Returns a worker's job: as many steps as fit QUICK seconds (at least one), with seconds and operations."""
    observed: list[ProfiledKernels] = []

    def observe(kernels: Backend) -> Backend:
        observed.append(ProfiledKernels(kernels))
        return cast(Backend, observed[0])

    run = our_step(step, observe)

    def profiled() -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = []
        end = time.perf_counter() + timing.QUICK
        while not steps or time.perf_counter() < end:
            observed[0].calls.clear()
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            steps.append({"seconds": seconds, "lines": [asdict(line) for line in observed[0].lines()]})
        return steps

    return profiled


def bench(step: Step, rounds: int) -> dict[str, Any]:
    """The profile of one step, the median of `rounds` turns, and the machine's ceilings, measured just before.

    benchmarks/README.md describes the fields.
    """
    machine = roofline.ask(step.precision, step.threads)
    with timing.worker("llm.py") as us, bar("profiling", rounds, "turns") as shown:
        us.prepare("llmpy.bench.profile:our_profiled_steps", step=asdict(step))
        steps = []
        for _ in range(rounds):
            steps += us.result()
            shown.advance()
    median = sorted(steps, key=lambda one: one["seconds"])[(len(steps) - 1) // 2]
    return table(median["seconds"], [Line(**line) for line in median["lines"]], machine)


def table(seconds: float, lines: list[Line], machine: roofline.Ceilings) -> dict[str, Any]:
    """Returns the report of a step that took `seconds`: operations, longest first, and the rest, spent in Python."""
    rest = Line(REST, 1, max(0.0, seconds - sum(line.seconds for line in lines)))
    lines = [*sorted(lines, key=lambda line: line.seconds, reverse=True), rest]
    return {
        "step_ms": timing.milliseconds(seconds),
        "ceilings": machine.rounded(),
        "operations": [_row(line, seconds, machine) for line in lines],
    }


def _row(line: Line, seconds: float, machine: roofline.Ceilings) -> dict[str, Any]:
    row = asdict(line) | {"ms": timing.milliseconds(line.seconds), "share": round(line.seconds / seconds, 5)}
    del row["seconds"]
    if line.operation == REST:
        return row
    bound = "products" if line.flops / machine.flops >= line.bytes / machine.bandwidth else "memory"
    return row | {
        "gflops": round(line.flops / line.seconds / 1e9, 2),
        "gb_per_s": round(line.bytes / line.seconds / 1e9, 2),
        "bound": bound,
        "share_of_ceiling": round(machine.floor(line.flops, line.bytes) / line.seconds, 4),
    }
