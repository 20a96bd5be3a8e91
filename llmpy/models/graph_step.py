"""A micro-step on a device with memory of its own: the batch goes ahead, the kernels are a graph, the loss comes later.

The host only asks: while the device computes one batch, the next is read, copied beside it, and asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from llmpy.kernels import Backend
from llmpy.utils.memory import MemoryPlan


def plan_batch(plan: MemoryPlan, B: int, T: int) -> None:
    """Add where a batch lies on the device, and the mean of its losses."""
    for name in ("tokens", "targets"):
        plan.add("activations", name, B, T, dtype=np.int32)
    plan.add("activations", "loss", 1)


class DeviceStep:
    """Runs the passes of a model on the batches it is given; each kind of pass becomes a graph of the device."""

    def __init__(self, kernels: Backend, arrays: dict[str, Any]) -> None:
        assert kernels.device is not None
        self.kernels, self.arrays, self._driver = kernels, arrays, kernels.device
        self.device = self._driver.current()
        self._ahead = self.device.copies_ahead(2 * (arrays["tokens"].nbytes + 256))
        self._graphs: dict[Hashable, Callable[[], None]] = {}

    def tune(self, learn: Callable[[Any, Any], None]) -> None:
        """Times the ways of each product that a micro-step makes. The interpreter, which knows one, is left alone."""
        if self._driver.INTERPRETED:
            return
        with self.kernels.tuning(), self.kernels.shown():
            learn(self.arrays["tokens"], self.arrays["targets"])

    def place(self, tokens: np.ndarray, targets: np.ndarray | None = None) -> tuple[Any, Any]:
        """tokens and targets int32 [B, T] -> where they will lie when the device comes to what is asked for next."""
        places = self.arrays["tokens"], self.arrays["targets"]
        self._ahead.put(tokens.astype(np.int32), (tokens if targets is None else targets).astype(np.int32))
        self._ahead.deliver(*(place.address for place in places))
        return places

    def run(self, kind: Hashable, function: Callable[[Any, Any], None], tokens: np.ndarray, targets: np.ndarray) -> Any:
        """The mean of the losses that `function(tokens, targets)` leaves, as a pending value: float() waits for it.

        Calls of one `kind` must ask the device for the same, for they become one graph; with None they become none.
        """
        places = self.place(tokens, targets)

        def whole() -> None:
            function(*places)
            self.kernels.mean(self.arrays["loss"], self.arrays["losses"])

        if kind is None:
            whole()
        else:
            if kind not in self._graphs:
                self._graphs[kind] = self.device.captured(whole)
            self._graphs[kind]()
        return self.device.read_later(self.arrays["loss"].address)
