"""Every operation of the contract on the GPU against the reference in float64, in the shapes of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.gpu import arrays
from benchmarks.gpu.cases import HEAD_SIZES, STORED, Case, attention, decode_attention, few_rows, named, of_model
from llmpy import kernels
from llmpy.kernels import cuda, reference
from llmpy.kernels.cuda.gemm.packed_weight import Weight
from llmpy.kernels.reference.attention import attention_decode

LIMITS = {"float32": 1e-5, "bfloat16": 1e-2}  # of |difference| / |reference|, L2 norms of whole arrays
BESIDES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {  # what generation has beside the contract
    "attention_decode": (cuda.attention_decode, attention_decode),
    "linear of few rows": (arrays.add_product, lambda y, x, w, b: reference.linear_forward(y, x, w, b, residual=y)),
}


def cases(sizes: dict[str, Any]) -> list[tuple[Case, str]]:
    """The cases with their precisions. `sizes`: models, B, T; tokens of a KV cache, a matrix [OC, C] of decoding."""
    B, T = sizes["B"], sizes["T"]
    made = [case for model in sizes["models"] for case in of_model(*named(model), B, T, B * T // 2)]
    for hs in HEAD_SIZES:
        for NKV in (4, 2):
            made += attention(f"head {hs}", B, T + 5, 4, NKV, hs) + attention(f"head {hs}", B, T + 5, 4, NKV, hs, True)
            made.append(decode_attention(3, sizes["cache"], 4, NKV, hs))
    both = [(case, precision) for case in made for precision in LIMITS]
    OC, C = sizes["matrix"]
    return both + [(few_rows(S, OC, C, kind), "float32") for kind in STORED for S in (1, 5, 16)]


def check(sizes: dict[str, Any], part: int = 0, parts: int = 1) -> Iterator[dict[str, Any]]:
    """Runs in a child process. Checks every `parts`-th case from `part` on: yields their number, then a row each."""
    kernels.load("cuda")
    todo = [each for each in cases(sizes) if each[1] == "float32" or cuda.bfloat16_is_faster()][part::parts]
    yield {"cases": len(todo)}
    for case, precision in todo:
        try:
            yield compared(case, precision)
        except Exception as error:  # a kernel that cannot be compiled or launched here: the others may
            said = str(error).strip().splitlines()
            yield _row(case, precision, float("inf"), f"{type(error).__name__}: {said[0] if said else ''}")


def compared(case: Case, precision: str) -> dict[str, Any]:
    """One case: the largest error among the arrays that it writes, and which one that is."""
    buffers = arrays.on_host(case, precision)
    if case.operation == "attention_backward":
        _attended(case, buffers)
    exact = arrays.exact(buffers)
    expected, given = arrays.bound(case, exact), arrays.placed(case, buffers)
    ours, theirs = BESIDES.get(case.operation) or (getattr(cuda, case.operation), None)
    returned = ours(**given)
    wanted = (theirs or _reference(case))(**expected)
    errors = {"what it returns": relative_error(returned, wanted)} if wanted is not None else {}
    for name, operand in case.operands().items():
        actual = given[name]
        if operand.role in ("out", "sum") and actual is not None:
            actual = actual.matrix if isinstance(actual, Weight) else actual
            errors[name] = relative_error(actual.numpy(), expected[name])
    worst = max(errors, key=lambda name: errors[name])
    return _row(case, precision, errors[worst], worst)


def _row(case: Case, precision: str, error: float, of: str) -> dict[str, Any]:
    limit = LIMITS["bfloat16" if case.label.endswith(STORED[1:]) else precision]
    passed, told = error <= limit, error if np.isfinite(error) else None  # JSON knows no infinity
    return {
        "size": case.size, "operation": case.operation, "label": case.label, "precision": precision, "error": told,
        "of": of, "limit": limit, "passed": bool(passed),
    }  # fmt: skip


def relative_error(actual: Any, expected: Any) -> float:
    """|actual - expected| / |expected|, L2 norms; infinite where something is not finite."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    difference = np.linalg.norm((actual - expected).reshape(-1))
    return float(difference / np.linalg.norm(expected.reshape(-1))) if difference else 0.0


# ---- the reference, where it lacks what is fused -------------------------------------------------------------------


def _reference(case: Case) -> Callable[..., Any]:
    operation = getattr(reference, case.operation)
    if case.operation == "adamw":
        return _adamw
    if not case.rope:
        return operation
    cos, sin = (each.astype(np.float64) for each in arrays.angles(case))

    def rotated(q: np.ndarray, k: np.ndarray, **others: Any) -> None:
        """Calls the operation on rotated q and k, then rotates the gradients in q and k by the negative angles."""
        for x in (q, k):
            reference.rope_forward(x, cos, sin, False)
        operation(q=q, k=k, **others)
        for x in (q, k):
            reference.rope_backward(x, cos, sin, False)

    return rotated


def _adamw(weight: np.ndarray, p: np.ndarray, **others: Any) -> None:
    reference.adamw(p, **others)
    weight[...] = p


def _attended(case: Case, buffers: dict[str, Any]) -> None:
    """y and lse become those of the forward pass, as the backward pass finds them."""
    values = arrays.bound(case, arrays.exact(buffers))
    _reference(replace(case, operation="attention_forward"))(
        **{name: values[name] for name in ("y", "lse", "q", "k", "v")}
    )
    buffers["y"][...], buffers["lse"][...] = values["y"], values["lse"]
