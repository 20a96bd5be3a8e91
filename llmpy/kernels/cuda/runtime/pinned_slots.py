"""Checks of prefetched batches (`Device.copies_ahead`), shared by the GPU and the interpreter."""

from __future__ import annotations

import numpy as np

from llmpy.kernels.cuda.runtime.arena import aligned

LOTS = 2  # batches that may be in flight


def check_lot(arrays: tuple[np.ndarray, ...], size: int, waiting: int) -> None:
    """Raises ValueError for what `CopiesAhead.put` does not take."""
    if waiting == LOTS:
        raise ValueError(f"{LOTS} lots wait already: deliver one before the next is put")
    if (needed := sum(aligned(array.nbytes) for array in arrays)) > size:
        raise ValueError(f"a lot of {needed} bytes where {size} were planned")


def check_delivery(addresses: tuple[int, ...], waiting: list[int]) -> None:
    """Raises ValueError for arguments that `CopiesAhead.deliver` refuses; `waiting`: lengths of queued batches."""
    if not waiting:
        raise ValueError("no lot waits to be delivered")
    if len(addresses) != waiting[0]:
        raise ValueError(f"{len(addresses)} addresses for a lot of {waiting[0]} arrays")
