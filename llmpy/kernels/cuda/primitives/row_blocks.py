"""Block sizes of kernels over rows (norms, dropout, embeddings): a program holds several whole rows."""

from __future__ import annotations

from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import power_of_2


def row_tile(columns: int, numbers: int = 2048) -> dict[str, int]:
    """The block of a program that reads rows of `columns` elements: `rows`, `columns` (a power of 2) and `num_warps`.

    A block has about `numbers` elements, 16 for each thread: the programs of a multiprocessor then have enough loads in
    flight to reach the bandwidth of memory, and enough registers.
    """
    block = power_of_2(columns)
    if INTERPRETED:
        return {"rows": max(1, 2**14 // block), "columns": block, "num_warps": 4}
    rows = max(1, numbers // block)
    return {"rows": rows, "columns": block, "num_warps": min(16, max(1, rows * block // 512))}
