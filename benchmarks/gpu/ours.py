"""Our kernels, each timed in the shapes of models, with the work that it has to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.gpu import arrays
from benchmarks.gpu.cases import STORED, Case, timed
from benchmarks.gpu.stopwatch import Stopwatch
from llmpy.bench.flop_count import Work, work_of
from llmpy.errors import UserError
from llmpy.kernels import cuda, reference
from llmpy.kernels.cuda.runtime.array import empty

PRODUCTS = ("linear_forward", "linear_backward", "classifier_forward", "classifier_backward")
PRECISION = "bfloat16"


def times(sizes: dict[str, Any], flush: int) -> Iterator[dict[str, Any]]:
    """Runs in a child process. Yields a row for each case (for each GEMM if it is a matmul): seconds, flops, bytes.

    cuBLASLt uses the algorithm that was fastest when tried. Our GEMM uses guessed tiles, since compiling all candidates
    takes minutes.
    """
    watch, libraries = Stopwatch(flush), _libraries()
    for case in timed(sizes):
        for way in libraries if case.operation in PRODUCTS else [""]:
            row = {"key": case.key, "size": case.size, "operation": case.operation, "label": case.label, "way": way}
            try:
                yield row | _timed(case, way, watch)
            except Exception as error:  # the others may have room, or run
                yield row | {"missing": str(error).strip().splitlines()[0] if str(error) else type(error).__name__}


def _libraries() -> list[str]:
    """The GEMMs that this machine has."""
    try:
        cuda.set_gemm("cublas")
    except UserError:
        return ["triton"]
    return ["cublas", "triton"]


def _timed(case: Case, way: str, watch: Stopwatch) -> dict[str, Any]:
    arguments = arrays.on_device(case, PRECISION)
    run = _call(case, arguments)
    if way:
        cuda.set_gemm(way)
    if way == "cublas":
        with cuda.tuning():
            run()
    work = _work(case, arguments)
    return {"seconds": watch.seconds(run), "flops": work.flops, "bytes": work.bytes}


def _call(case: Case, arguments: dict[str, Any]) -> Callable[[], object]:
    """The case as a training step or a decoder asks for it: nothing of it waits."""
    if case.operation == "global_norm":
        return partial(cuda.clip_scale, empty(1), empty(1), arguments["g"], 1.0)
    if case.operation == "attention_decode":
        arguments["positions"][...] = arguments["k_cache"].shape[1] - 1  # the cache is full
        return partial(cuda.attention_decode, **arguments)
    if case.operation == "attention_backward":
        _attended(arguments)
    ours = arrays.add_product if case.label.endswith(STORED) else getattr(cuda, case.operation)
    return partial(ours, **arguments)


def _attended(arguments: dict[str, Any]) -> None:
    """y and lse become those of q, k and v, and the gradients get memory of their own: it can be done again."""
    given = {name: arguments[name] for name in ("y", "lse", "q", "k", "v", "rope") if name in arguments}
    cuda.attention_forward(**given)
    parts = [arguments[name].shape for name in ("q", "k", "v")]
    B, T, _, hs = parts[0]
    buffer, start = empty(B, T, sum(part[2] for part in parts), hs, dtype=arguments["q"].dtype), 0
    for name, part in zip(("dq", "dk", "dv"), parts, strict=True):
        arguments[name] = buffer[:, :, start : start + part[2]]
        start += part[2]


def _work(case: Case, arguments: dict[str, Any]) -> Work:
    """The flops and bytes of a case; arguments that the case does not give have the defaults of the contract."""
    if case.label.endswith(STORED):
        w = arguments["w"]
        read = w.data.nbytes + (0 if w.scales is None else w.scales.nbytes)
        return Work(case.key, 0, read + sum(arguments[name].nbytes for name in ("x", "y", "y", "b")))
    parameters = inspect.signature(getattr(reference, case.operation, cuda.attention_decode)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return work_of(case.operation, defaults | arguments)
