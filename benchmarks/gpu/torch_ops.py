"""PyTorch's operations in the same shapes, each with its own kernels as a model in bfloat16 calls them.

In a process where nothing of ours runs. On the CPU it is for trying the code out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812  (its name everywhere)
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.cases import Case, Operand, Same, timed

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
SLEEP = 2_000_000  # cycles that the card waits before each run, a millisecond: the host is ahead of it by then
LEAST, MOST, SECONDS = 5, 50, 0.1


def times(sizes: dict[str, Any], flush: int, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Runs in a child process. Measures the seconds of each case; attention once for each implementation."""
    if device == "cuda" and not torch.cuda.is_available():
        yield {"problem": f"PyTorch {torch.__version__} finds no GPU: install a build of it for CUDA"}
        return
    torch.manual_seed(0)
    cover = torch.empty(flush, dtype=torch.uint8, device=device)
    names = ["flash", "cuDNN"] if device == "cuda" else ["math"]
    for case in timed(sizes):
        for name in names if case.operation.startswith("attention_") else ["PyTorch"]:
            try:
                run = _operation(case, device, name)
                if run is not None:
                    yield {"key": case.key, "name": name, "seconds": _seconds(run, cover)}
            except Exception as error:  # an implementation that has no such shape, or no room
                said = str(error).strip().splitlines()
                yield {"key": case.key, "name": name, "missing": said[0] if said else type(error).__name__}


def _seconds(run: Callable[[], object], cover: torch.Tensor) -> float:
    """The median of some runs, each with nothing of the one before in the caches."""
    if cover.device.type == "cpu":
        spent = []
        for _ in range(2):
            start = time.perf_counter()
            run()
            spent.append(time.perf_counter() - start)
        return min(spent)
    run()
    first = _on_clock(run, cover, 2)
    return statistics.median(_on_clock(run, cover, min(MOST, max(LEAST, int(SECONDS / max(min(first), 1e-9))))))


def _on_clock(run: Callable[[], object], cover: torch.Tensor, count: int) -> list[float]:
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for begin, end in events:
        cover.zero_()
        torch.cuda._sleep(SLEEP)
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1000 for begin, end in events]


# ---- the operations ------------------------------------------------------------------------------------------------


def _operation(case: Case, device: str, attention: str) -> Callable[[], object] | None:
    """The PyTorch call for a case; None if PyTorch has no equivalent."""
    a = {name: _tensor(value, device) for name, value in case.arguments.items() if not isinstance(value, Same)}
    match case.operation:
        case "embedding_forward":
            return lambda: _embedded(a).bfloat16()
        case "embedding_backward":
            return partial(_embedding_gradient, a["dx"], a["tokens"], a["dwte"].shape[0], a["dwpe"] is not None)
        case "layernorm_forward" | "rmsnorm_forward":
            return partial(_norm, a["x"], a["w"].bfloat16(), a.get("b"))
        case "layernorm_backward" | "rmsnorm_backward":
            w = a["w"].bfloat16()
            b = torch.zeros_like(w) if "db" in a else None
            backward = _gradient(partial(_norm, a["x"], w, b), a["dy"], a["x"], w, b)
            return lambda: a["dresidual"].add_(backward()[0])
        case "linear_forward":
            return partial(_linear, a)
        case "linear_backward":
            b = None if a["db"] is None else torch.zeros_like(a["db"], dtype=a["x"].dtype)
            x, gelu = a["x"], partial(F.gelu, approximate="tanh") if a["gelu"] else lambda x: x
            return _gradient(lambda: F.linear(gelu(x), a["w"], b), a["dy"], x, a["w"], b)
        case "gelu_forward":
            return partial(F.gelu, a["x"], approximate="tanh")
        case "gelu_backward":
            return _gradient(partial(F.gelu, a["x"], approximate="tanh"), a["dy"], a["x"])
        case "swiglu_forward":
            return partial(_swiglu, a["gateup"])
        case "swiglu_backward":
            return _gradient(partial(_swiglu, a["gateup"]), a["dy"], a["gateup"])
        case "dropout":
            return lambda: a["residual"] + F.dropout(a["x"], a["probability"])
        case "attention_forward":
            q, k, v = (a[name].transpose(1, 2) for name in "qkv")
            return partial(_attention, q, k, v, attention)
        case "attention_backward":
            q, k, v = (a[name].transpose(1, 2) for name in "qkv")
            return _gradient(partial(_attention, q, k, v, attention), a["dy"].transpose(1, 2), q, k, v)
        case "classifier_forward":
            return lambda: _losses(a)
        case "classifier_backward":
            return lambda: _gradient(partial(_losses, a), None, a["x"], a["w"])()
        case "adamw":
            return _adamw(a)
        case "global_norm":
            return partial(torch.linalg.vector_norm, a["g"])
        case "linear of few rows" if case.label.endswith("BF16"):
            return _add_product(*(a[name].bfloat16() for name in ("y", "x", "w", "b")))
        case "linear of few rows" if case.label.endswith("F32"):
            return _add_product(*(a[name] for name in ("y", "x", "w", "b")))
    return None


def _tensor(value: Any, device: str) -> Any:
    if not isinstance(value, Operand):
        return value
    if value.kind == "int32":
        return torch.randint(value.below, value.shape, device=device)
    numbers = torch.bfloat16 if value.kind in ("acts", "weight") else torch.float32
    return torch.randn(value.shape, dtype=numbers, device=device) * value.scale


def _gradient(forward: Callable[[], torch.Tensor], dy: torch.Tensor | None, *inputs: Any) -> Callable[[], Any]:
    """The backward pass alone, to be run again and again."""
    wanted = [tensor.requires_grad_() for tensor in inputs if tensor is not None]
    with torch.enable_grad():
        y = forward()
    return partial(torch.autograd.grad, y, wanted, dy, retain_graph=True)


def _embedded(a: dict[str, Any]) -> torch.Tensor:
    x = F.embedding(a["tokens"], a["wte"])
    return x if a["wpe"] is None else x + a["wpe"]


def _embedding_gradient(dx: torch.Tensor, tokens: torch.Tensor, V: int, positions: bool) -> Any:
    dwte = torch.ops.aten.embedding_dense_backward(dx, tokens, V, -1, False)
    return (dwte, dx.sum(0)) if positions else dwte


def _norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    if b is None:
        return F.rms_norm(x, (x.shape[-1],), w)
    return F.layer_norm(x, (x.shape[-1],), w, b.to(x.dtype))


def _linear(a: dict[str, Any]) -> torch.Tensor:
    y = F.linear(a["x"], a["w"], None if a["b"] is None else a["b"].bfloat16())
    if "residual" in a:
        return a["residual"] + y
    return F.gelu(y, approximate="tanh") if "pre_gelu" in a else y


def _add_product(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: y + F.linear(x, w, b)


def _swiglu(gateup: torch.Tensor) -> torch.Tensor:
    gate, up = gateup.chunk(2, -1)
    return F.silu(gate) * up


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, name: str) -> torch.Tensor:
    with sdpa_kernel(BACKENDS[name]):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _losses(a: dict[str, Any]) -> torch.Tensor:
    return F.cross_entropy(F.linear(a["x"], a["w"]).float(), a["targets"])


def _adamw(a: dict[str, Any]) -> Callable[[], object]:
    p = a["p"].requires_grad_()
    p.grad = a["g"]
    return torch.optim.AdamW([p], lr=a["lr"], betas=(a["beta1"], a["beta2"]), fused=True).step
