"""Work division of row-wise kernels: the number of rows a program holds."""

from __future__ import annotations

from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import power_of_2


def row_tile(columns: int, numbers: int = 2048) -> dict[str, int]:
    """The block of a program that reads rows of `columns` numbers: `rows`, `columns` (a power of 2) and `num_warps`.

    About `numbers` at a time, 16 of them to a thread: all that run on a multiprocessor then have enough bytes on their
    way to reach the speed of memory, and registers for what is made of them.
    """
    block = power_of_2(columns)
    if INTERPRETED:
        return {"rows": max(1, 2**14 // block), "columns": block, "num_warps": 4}
    rows = max(1, numbers // block)
    return {"rows": rows, "columns": block, "num_warps": min(16, max(1, rows * block // 512))}
