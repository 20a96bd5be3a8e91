"""Facts about the device for the rest of the program: name, free memory, peak FLOP/s, and the arrays of a plan."""

from __future__ import annotations

from llmpy.errors import UserError
from llmpy.kernels import gpu_specs
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.arena import ALIGNMENT
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.utils.memory import TRAINING_ADVICE, MemoryPlan

RESERVE = 512 * 2**20  # left to the kernels' code, scratch, cuBLASLt's workspace and whatever else is loaded
HAS_BFLOAT16 = 8, 0  # the architecture from which on it is multiplied faster than float32


def open_device(precision: str) -> None:
    """The device made ready. Raises UserError for a precision that it has not."""
    card = device.current()
    if precision == "bfloat16" and card.capability < HAS_BFLOAT16:
        raise UserError(f"the {card.name} has no bfloat16: give --precision float32")


def device_name() -> str:
    return device.current().name


def bfloat16_is_faster() -> bool:
    return device.current().capability >= HAS_BFLOAT16


def peak_flops(precision: str) -> float | None:
    """FLOP/s of the card at most, as NVIDIA's sheets give them; None for a card that is not in our table."""
    return gpu_specs.peak_flops(device.current().name, precision)


def room() -> int:
    """Bytes that a plan may have."""
    return max(0, device.current().memory()[0] - RESERVE)


def take(plan: MemoryPlan, advice: str = TRAINING_ADVICE) -> dict[str, DeviceArray]:
    """Returns all arrays of a plan, zeroed, in one allocation on the device.

    Raises UserError, before anything is allocated, if memory does not suffice; `advice` tells how to need less.
    """
    offsets, size = plan.layout(ALIGNMENT)
    if size > (free := room()):
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
