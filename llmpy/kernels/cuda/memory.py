"""Memory of the device for a plan."""

from __future__ import annotations

from llmpy.kernels.cuda.array import DeviceArray, empty
from llmpy.memory import TRAINING_ADVICE, MemoryPlan


def take(plan: MemoryPlan, advice: str = TRAINING_ADVICE) -> dict[str, DeviceArray]:
    """All arrays of a plan, zeroed."""
    arrays = {entry.name: empty(*entry.shape, dtype=entry.dtype) for entry in plan.entries}
    for array in arrays.values():
        array.fill(0)
    return arrays
