"""The products of a training step, one by one: ours, NumPy's (OpenBLAS as pip installs it) and PyTorch's (MKL).

For every linear layer, forward y = x w^T, and backward dx = dy w and dw = dy^T x. All write into an array that exists.
In bfloat16 all operands are, and what we do to bring them into our tiles' order is part of our time; dw is in float32
with us, where the optimizer needs it, and in bfloat16 with PyTorch, which offers no other. NumPy has no bfloat16.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmpy import kernels
from llmpy.bench import machine, peers, timing
from llmpy.errors import UserError
from llmpy.kernels.defaults import LOGITS_ROWS
from llmpy.models.config import ModelConfig
from llmpy.models.precision import dtype
from llmpy.utils.memory import MemoryPlan
from llmpy.utils.progress_bar import bar

KINDS = ("forward", "dx", "dw")


@dataclass(frozen=True)
class Product:
    """One product of the layer w [OC, C] on `rows` rows, its operands in `precision`."""

    layer: str
    kind: str
    rows: int
    OC: int
    C: int
    precision: str = "float32"

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.OC * self.C

    def operands(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random x [rows, C], w [OC, C], dy [rows, OC], for every contestant on huge pages as in a model."""
        plan, random = MemoryPlan(), np.random.default_rng(0)
        for name, *shape in (("x", self.rows, self.C), ("w", self.OC, self.C), ("dy", self.rows, self.OC)):
            plan.add("operands", name, *shape, dtype=dtype(self.precision))
        arrays = plan.take()
        for array in arrays.values():
            array[...] = random.standard_normal(array.shape, np.float32)
        return arrays["x"], arrays["w"], arrays["dy"]

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """Returns the array for dw [OC, C] in float32: w itself if w is float32, for that matmul does not read w."""
        if w.dtype == np.float32:
            return w
        plan = MemoryPlan()
        plan.add("operands", "dw", self.OC, self.C)
        return plan.take()["dw"]


def layers(config: Any) -> dict[str, tuple[int, int]]:
    """OC and C of every linear layer, by its name."""
    C, V = config.channels, config.vocab_size
    if config.family == "llama":
        q, kv, H = config.heads * config.head_size, config.kv_heads * config.head_size, config.hidden
        return {"qkv": (q + 2 * kv, C), "attproj": (C, q), "gateup": (2 * H, C), "down": (C, H), "head": (V, C)}
    return {"qkv": (3 * C, C), "attproj": (C, C), "fc": (4 * C, C), "fcproj": (C, 4 * C), "head": (V, C)}


def products(config: ModelConfig, rows: Sequence[int], precision: str = "float32") -> list[Product]:
    """Returns all matmuls of a step for each number of rows; those of the head have at most LOGITS_ROWS rows."""
    return [
        Product(layer, kind, n, *shape, precision)
        for n in rows
        for layer, shape in layers(config).items()
        if layer != "head" or n <= LOGITS_ROWS
        for kind in KINDS
    ]


def our_product(product: dict[str, Any], threads: int) -> Callable[[], np.ndarray]:
    work = Product(**product)
    kernels.start("cpu", threads, precision=work.precision)
    from llmpy.kernels.cpu.gemm.gemm import NN, NT, TN, gemm

    x, w, dy = work.operands()
    weight = w if work.precision == "float32" else packed(w)
    operands = {"forward": (dy, x, weight, NT), "dx": (x, dy, weight, NN), "dw": (work.gradient(w), dy, x, TN)}
    c, a, b, layout = operands[work.kind]

    def run() -> np.ndarray:
        gemm(c, a, b, layout)
        return c

    return run


def packed(w: np.ndarray) -> Any:
    """A bfloat16 weight [OC, C] as a model has it: packed by the optimizer, once for all the products of a step."""
    from llmpy.kernels import cpu

    plan = MemoryPlan()
    plan.add("operands", "weight", cpu.weight_size(*w.shape), dtype=w.dtype.type)
    weight = cpu.Weight(plan.take()["weight"], *w.shape)
    cpu.pack_weight(weight, w.astype(np.float32))
    return weight


def numpy_product(product: dict[str, Any], threads: int) -> Callable[[], np.ndarray]:
    """`threads` is set in the environment: NumPy has no call for it."""
    x, w, dy = Product(**product).operands()
    a, b, out = {"forward": (x, w.T, dy), "dx": (dy, w, x), "dw": (dy.T, x, w)}[product["kind"]]
    return lambda: np.matmul(a, b, out=out)


def pytorch_product(product: dict[str, Any], threads: int) -> Callable[[], object]:
    import torch

    from llmpy.bench.torch_peer.model import as_tensor

    torch.set_num_threads(threads)
    x, w, dy = (as_tensor(array) for array in Product(**product).operands())
    a, b, out = {"forward": (x, w.t(), dy), "dx": (dy, w, x), "dw": (dy.t(), x, w)}[product["kind"]]
    return lambda: torch.mm(a, b, out=out)


def bench(
    config: ModelConfig,
    rows: Sequence[int],
    threads: int,
    rounds: int,
    against_torch: bool,
    precision: str = "float32",
) -> dict[str, Any]:
    """Every product, by each contestant in turn; the peer of a product is the faster one of the others.

    Raises UserError where there are no others: bfloat16 without PyTorch.
    """
    from llmpy.bench import roofline  # not above: it loads our kernels, which no peer's process may

    contestants = {"llm.py": "our_product"}
    if precision == "float32":
        contestants["NumPy"] = "numpy_product"
    if against_torch:
        peers.require_torch()
        contestants["PyTorch"] = "pytorch_product"
    if len(contestants) == 1:
        raise UserError(
            f"matmul in {precision} needs a peer, and NumPy has no {precision}: add --against torch, or"
            " take --precision float32"
        )
    kernels.start("cpu", threads, precision=precision)
    ceiling = roofline.ask(precision, threads)
    todo = products(config, rows, precision)
    results = []
    with ExitStack() as stack, bar("measuring", len(todo) * rounds * len(contestants), "turns") as shown:
        settings = peers.thread_settings(threads)
        workers = [stack.enter_context(timing.worker(name, settings)) for name in contestants]
        for product in todo:
            shown.description = f"measuring {product.layer} {product.kind}, {product.rows} rows"
            for worker, target in zip(workers, contestants.values(), strict=True):
                worker.prepare(f"llmpy.bench.matmul:{target}", product=asdict(product), threads=threads)
            times = dict(zip(contestants, timing.interleave(workers, rounds, shown.advance), strict=True))
            ours = times.pop("llm.py")
            fastest = min(times, key=lambda name: times[name])
            results.append(
                asdict(product)
                | timing.comparison(fastest, ours, times[fastest])
                | {
                    "gflops": {
                        name: round(product.flops / t / 1e9, 1) for name, t in ({"llm.py": ours} | times).items()
                    },
                    "share_of_ceiling": round(product.flops / ours / ceiling.flops, 4),
                }
            )
    others = list(contestants)[1:]
    ratios = [result["ratio"] for result in results]
    return {
        "benchmark": "matmul",
        "precision": precision,
        "rounds": rounds,
        "ours_ms": round(sum(result["ours_ms"] for result in results), 4),
        "peer": others[0] if len(others) == 1 else f"the faster of {' and '.join(others)}",
        "peer_ms": round(sum(result["peer_ms"] for result in results), 4),
        "ratio": statistics.median(ratios),
        "worst_ratio": max(ratios),
        "ceilings": ceiling.rounded(),
        "products": results,
        "machine": machine.describe(threads),
    }
