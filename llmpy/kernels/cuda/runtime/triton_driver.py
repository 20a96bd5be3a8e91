"""Triton's driver for our device, without PyTorch: on which GPU and on which stream its kernels start.

Triton 3.6 asks PyTorch for both when its own driver is made; later releases do where PyTorch has been imported, too.
Theirs is therefore never asked: kernels would start on PyTorch's stream beside our copies, and in no captured graph.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

if TYPE_CHECKING:
    from llmpy.kernels.cuda.runtime.device import Device

WARP = 32  # threads


class OwnDriver(CudaDriver):
    """Triton's driver with the questions to PyTorch answered by one device."""

    def __init__(self, device: Device, ordinal: int) -> None:  # the base class's is what asks PyTorch
        self.utils = CudaUtils()
        self.launcher_cls = CudaLauncher
        major, minor = device.capability
        self._target = GPUTarget("cuda", major * 10 + minor, WARP)
        self.get_current_device = lambda: ordinal
        self.set_current_device = lambda asked: None
        self.get_current_stream = lambda asked: device.stream
        self.get_device_capability = lambda asked: device.capability

    def get_current_target(self) -> Any:
        return self._target

    @staticmethod
    def is_active() -> bool:
        return True


def install(device: Device, ordinal: int) -> None:
    """Makes Triton launch its kernels on the stream of this device."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as before Triton 3.10; 3.9 warns where nothing is said
    triton.runtime.driver.set_active(OwnDriver(device, ordinal))
