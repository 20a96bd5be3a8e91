"""Launching kernels of Triton without PyTorch, on the GPU or in the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray

if device.INTERPRETED:
    from llmpy.kernels.cuda.runtime import interpreter_fixes

    interpreter_fixes.install()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Runs a `@triton.jit` function on `grid` programs; `options` are its constants, num_warps and num_stages."""
    device.current()  # the driver that Triton asks is ours once the device is open
    if device.INTERPRETED:
        arguments = tuple(interpreter_fixes.Pointer(x) if isinstance(x, DeviceArray) else x for x in arguments)
        for name in ("num_warps", "num_stages"):
            options.pop(name, None)
        with np.errstate(all="ignore"):  # a GPU makes NaN and infinity without a word
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


def cdiv(n: int, block: int) -> int:
    """The number of blocks that cover n."""
    return -(-n // block)


def power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n."""
    return 1 << max(0, n - 1).bit_length()
