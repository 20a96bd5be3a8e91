"""The device as the rest of the program sees it: name, headroom in memory, peak FLOP/s, and the arrays of a plan."""

from __future__ import annotations

from llmpy.errors import UserError
from llmpy.kernels import gpu_specs
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.arena import ALIGNMENT
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.utils.memory import TRAINING_ADVICE, MemoryPlan

RESERVE = 512 * 2**20  # bytes left for the kernels' code, scratch and cuBLASLt's workspace
HAS_BFLOAT16 = 8, 0  # the first compute capability that multiplies bfloat16 faster than float32


def open_device(precision: str) -> None:
    """Opens the device. Raises UserError if the device does not compute in this precision."""
    card = device.current()
    if precision == "bfloat16" and card.capability < HAS_BFLOAT16:
        raise UserError(f"the {card.name} has no bfloat16: give --precision float32")


def device_name() -> str | None:
    """The name of the GPU"""
    return device.current().name


def bfloat16_is_faster() -> bool:
    """Returns whether the GPU multiplies bfloat16 faster than float32."""
    return device.current().capability >= HAS_BFLOAT16


def peak_flops(precision: str) -> float | None:
    """The highest FLOP/s of the GPU by NVIDIA's data sheets; None for a GPU that gpu_specs.py does not list."""
    return gpu_specs.peak_flops(device.current().name, precision)


def headroom() -> int:
    """Bytes of the GPU's memory that a plan may take."""
    return max(0, device.current().memory()[0] - RESERVE)


def take(plan: MemoryPlan, advice: str = TRAINING_ADVICE) -> dict[str, DeviceArray]:
    """Allocates all arrays of a plan, zeroed, in one piece of the device's memory.

    Raises UserError, before anything is allocated, if memory is short; `advice` tells how to need less memory.
    """
    offsets, size = plan.layout(ALIGNMENT)
    if size > (free := headroom()):
        raise UserError(
            f"this needs {size / 1e9:.1f} GB of memory on the {device_name()}, and {free / 1e9:.1f} GB are free: "
            f"{advice}"
        )
    start, owner = device.current().take(size)
    device.current().clear(start, size)
    return {
        entry.name: DeviceArray(start + offset, entry.shape, entry.dtype, owner)
        for entry, offset in zip(plan.entries, offsets, strict=True)
    }
