"""Kernels in Triton for NVIDIA GPUs, without PyTorch: the contract of llmpy/kernels over arrays of the device."""

from typing import Any

from llmpy.kernels.cuda.array import DeviceArray, empty
from llmpy.kernels.cuda.card import bfloat16_is_faster, device_name, open_device, peak_flops, room, take
from llmpy.kernels.cuda.device import choose
from llmpy.kernels.cuda.gelu import gelu_backward, gelu_forward

__all__ = [
    "DeviceArray",
    "choose",
    "device_name",
    "empty",
    "gelu_backward",
    "gelu_forward",
    "open_device",
    "peak_flops",
    "room",
    "take",
]


def __getattr__(name: str) -> Any:
    """What the CPU's kernels know when they are imported, and here the card must be asked for."""
    if name == "BFLOAT16_IS_FASTER":
        return bfloat16_is_faster()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
