"""What a call of an operation has to do, counted from the shapes of its arguments: operations in products, and bytes.

An operation of a product is a multiplication or an addition. Bytes are those of each array that the contract
(llmpy/kernels/contract.py) names, once where it is read and once where it is written: what must pass between memory and
processor where no cache holds it. Scratch is left out, and so is arithmetic that is not a product: it is hidden behind
one or the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True)
class Work:
    """Of one call; `label` is the line it belongs to: the operation, and of a linear layer its shape OC x C."""

    label: str
    flops: int
    bytes: int


def work_of(operation: str, arguments: Mapping[str, Any]) -> Work:
    """The work of a call with these arguments, by name. An operation that is not known reads every array once."""
    a = arguments
    match operation:
        case "linear_forward":
            (N, OC), C = a["y"].shape, a["x"].shape[1]
            moved = _bytes(a["y"], a["x"], a["w"], a["b"], a["residual"], a["pre_gelu"])
            return Work(f"{operation} {OC} x {C}", 2 * N * OC * C, moved)
        case "linear_backward":
            (N, OC), C = a["dy"].shape, a["x"].shape[1]
            products = 1 if a["dx"] is None else 2
            again = (a["x"], a["x"]) if a["gelu"] else ()  # it is written, and read again by dw
            moved = _bytes(a["dx"], a["dw"], a["db"], a["db"], a["dy"], a["x"], a["w"], *again)
            return Work(f"{operation} {OC} x {C}", products * 2 * N * OC * C, moved + _added(a))
        case "classifier_forward" | "classifier_backward":
            (N, C), V = a["x"].shape, a["logits"].shape[1]
            products = 1 if operation == "classifier_forward" else 3
            moved = _bytes(a["losses"], a["x"], a["w"], a["targets"], a.get("dx"), a.get("dw"))
            return Work(operation, products * 2 * N * V * C, moved + _added(a))
        case "attention_forward" | "attention_backward":
            B, T, NH, hs = a["q"].shape
            products = 2 if operation == "attention_forward" else 5  # scores and y; scores, dp, dq, dk and dv
            pairs = T * (T + 1) // 2  # a query sees no later key
            return Work(operation, products * 2 * B * NH * pairs * hs, _bytes(*a.values()))
        case "embedding_forward":
            rows = _bytes(a["x"])
            return Work(operation, 0, 2 * rows + rows // len(a["tokens"]) + _bytes(a["tokens"]))
        case "embedding_backward":
            rows = _bytes(a["dx"])
            return Work(operation, 0, 3 * rows + 2 * rows // len(a["tokens"]) + _bytes(a["tokens"]))
        case "layernorm_backward" | "rmsnorm_backward":
            return Work(operation, 0, _bytes(*a.values(), a["dresidual"], a["dw"], a.get("db")))
        case "rope_forward" | "rope_backward":  # in place; of the tables, the rows of its positions
            x = a["x"] if "x" in a else a["dx"]
            return Work(operation, 0, 2 * _bytes(x) + _bytes(a["cos"][: x.shape[1]], a["sin"][: x.shape[1]]))
        case "adamw":
            return Work(operation, 0, _bytes(*a.values(), a["p"], a["m"], a["v"]))
        case _:
            return Work(operation, 0, _bytes(*a.values()))


def _bytes(*arguments: Any) -> int:
    """Of those among the arguments that are arrays; what has a shape and no bytes is a weight packed in bfloat16."""
    return sum(getattr(array, "nbytes", 2 * prod(array.shape)) for array in arguments if hasattr(array, "shape"))


def _added(arguments: Mapping[str, Any]) -> int:
    """Bytes read of a gradient that is added to, not written."""
    return _bytes(arguments["dw"]) if arguments.get("accumulate") else 0
