"""How kernels of rows divide their work: into programs that hold a few rows."""

from __future__ import annotations

from llmpy.kernels.cuda.device import INTERPRETED
from llmpy.kernels.cuda.launch import power_of_2


def tile(columns: int, numbers: int = 4096) -> dict[str, int]:
    """The block of a program that reads rows of `columns` numbers: `rows`, `columns` (a power of 2) and `num_warps`.

    About `numbers` at a time, 32 of them to a thread: that many bytes must be on their way to reach the speed of memory.
    """
    block = power_of_2(columns)
    if INTERPRETED:
        return {"rows": max(1, 2**14 // block), "columns": block, "num_warps": 4}
    rows = max(1, numbers // block)
    return {"rows": rows, "columns": block, "num_warps": min(16, max(1, rows * block // 1024))}
