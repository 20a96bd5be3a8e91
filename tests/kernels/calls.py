"""One call of every operation, on shapes that are never round: for tests of what holds for all of them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.kernels.numerics import is_float


@dataclass
class Call:
    operation: str
    arguments: tuple[Any, ...]
    outputs: tuple[int, ...]  # which arguments are written, or added to
    options: dict[str, Any] = field(default_factory=dict)
    scratch: tuple[int, ...] = ()

    @property
    def inputs(self):
        """Arguments with floats that are read."""
        return [
            i for i, x in enumerate(self.arguments) if is_float(x) and i not in self.scratch and np.isfinite(x).all()
        ]

    def on(self, backend):
        """Run it -> a list of copies of what it wrote, and what it returned if it returns something."""
        returned = getattr(backend, self.operation)(*self.arguments, **self.options)
        written = [self.arguments[i].copy() for i in self.outputs]
        return written if returned is None else [*written, np.array([returned])]


def make(operation, arrays):
    """The call; `arrays` of the same seed give the same values. Large enough to be shared between threads."""
    new, empty, acts, empty_acts, weight = (
        arrays.normal, arrays.empty, arrays.acts, arrays.empty_acts, arrays.weight
    )  # fmt: skip
    N, C, OC, V = 203, 131, 97, 301
    B, T, NH, NKV, hs = 3, 131, 4, 2, 24
    y, lse = (B, T, NH, hs), (B, NH, T)
    match operation:
        case "embedding_forward":
            return Call(operation, (empty_acts(B, T, C), arrays.tokens(V, B, T), new(V, C), new(T, C)), (0,))
        case "embedding_backward":
            return Call(operation, (new(V, C), new(T, C), acts(B, T, C), arrays.tokens(5, B, T)), (0, 1))
        case "layernorm_forward":
            return Call(operation, (empty_acts(N, C), empty(N), empty(N), acts(N, C), new(C), new(C)), (0, 1, 2))
        case "layernorm_backward":
            gradients = acts(N, C), new(C), new(C)
            return Call(operation, (*gradients, acts(N, C), acts(N, C), new(C), new(N), new(N)), (0, 1, 2))
        case "rmsnorm_forward":
            return Call(operation, (empty_acts(N, C), empty(N), acts(N, C), new(C)), (0, 1))
        case "rmsnorm_backward":
            return Call(operation, (acts(N, C), new(C), acts(N, C), acts(N, C), new(C), new(N)), (0, 1))
        case "linear_forward":
            return Call(
                operation, (empty_acts(N, OC), acts(N, C), weight(OC, C), new(OC)), (0,), {"residual": acts(N, OC)}
            )
        case "linear_backward":
            return Call(
                operation,
                (empty_acts(N, C), new(OC, C), new(OC), acts(N, OC), acts(N, C), weight(OC, C)),
                (0, 1, 2, 4),
                {"gelu": True},
            )
        case "gelu_forward":
            return Call(operation, (empty_acts(N, C), acts(N, C)), (0,))
        case "gelu_backward":
            return Call(operation, (empty_acts(N, C), acts(N, C), acts(N, C)), (0,))
        case "swiglu_forward":
            return Call(operation, (empty_acts(N, C), acts(N, 2 * C)), (0,))
        case "swiglu_backward":
            return Call(operation, (empty_acts(N, 2 * C), empty_acts(N, C), acts(N, C), acts(N, 2 * C)), (0, 1))
        case "rope_forward" | "rope_backward":
            return Call(operation, (arrays.qkv(B, T, NH, NKV, hs)[0], new(T, hs // 2), new(T, hs // 2)), (0,))
        case "dropout":
            return Call(operation, (empty_acts(N, C), acts(N, C), 0.3, 2**63 + 5), (0,), {"residual": acts(N, C)})
        case "attention_forward":
            return Call(operation, (empty_acts(*y), empty(*lse), *arrays.qkv(B, T, NH, NKV, hs)), (0, 1))
        case "attention_backward":
            gradients = arrays.qkv(B, T, NH, NKV, hs)
            for gradient in gradients:
                gradient[:] = np.nan
            qkv = arrays.qkv(B, T, NH, NKV, hs)
            return Call(operation, (*gradients, acts(*y), *qkv, acts(*y), abs(new(*lse)) + 5), (0, 1, 2))
        case "classifier_forward":
            return Call(
                operation, (empty(N), acts(N, C), weight(V, C), arrays.tokens(V, N), empty(64, V)), (0,), scratch=(4,)
            )
        case "classifier_backward":
            return Call(
                operation,
                (
                    empty(N),
                    empty_acts(N, C),
                    new(V, C),
                    acts(N, C),
                    weight(V, C),
                    arrays.tokens(V, N),
                    1 / N,
                    empty(64, V),
                ),
                (0, 1, 2),
                scratch=(7,),
            )
        case "adamw":
            n = 3 * 65536 + 77
            return Call(operation, (new(n), new(n), new(n), abs(new(n)), 1e-3, 0.9, 0.95, 1e-8, 0.1, 7, 0.5), (0, 2, 3))
        case "global_norm":
            return Call(operation, (new(3 * 65536 + 77),), ())
    raise ValueError(f"write a call of {operation} here")
