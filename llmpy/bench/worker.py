"""A contestant of a benchmark: a process of its own, so that thread pools and allocators do not meet.

Commands come as lines of JSON on stdin, answers go as lines of JSON to stdout; in between the process sleeps.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from llmpy.errors import UserError
from llmpy.utils.system_memory import peak_memory


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    work: Callable[[], object] = lambda: None  # noqa: E731
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "prepare" in command:
                work = prepare(command["prepare"], command["arguments"], command["warm_up"])
                answer: dict[str, Any] = {}
            elif "result" in command:
                answer = {"result": work()}
            else:
                answer = {"seconds": turn(work, command["quick"])}
            answer["peak_mb"] = round(peak_memory() / 1e6, 1)
        except UserError as error:
            answer = {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


def prepare(target: str, arguments: dict[str, Any], warm_up: int) -> Callable[[], object]:
    """`module:function`, called with the arguments, gives the work, which is done `warm_up` times here."""
    module, _, name = target.partition(":")
    work: Callable[[], object] = getattr(importlib.import_module(module), name)(**arguments)
    for _ in range(warm_up):
        work()
    return work


def turn(work: Callable[[], object], quick: float) -> float:
    """Seconds that the work takes: once, or where that is less than `quick`, the mean of so many seconds' worth."""
    start = time.perf_counter()
    work()
    elapsed = time.perf_counter() - start
    if elapsed >= quick:
        return elapsed
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < quick:
        work()
        count += 1
    return elapsed / count


if __name__ == "__main__":
    main()
