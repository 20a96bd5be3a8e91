"""Block sizes of the attention kernels for each GPU architecture.

These are the largest blocks that compile without spilled registers and fit into shared memory; large blocks reuse most
data. Rotating q and k inside the kernel ("rotated") takes registers, so those blocks are smaller. A few kernels spill
nevertheless: dq in float32, rotated, from head size 128 on, and at 256; the rotated backward pass at 256; dk and dv at
128 on compute capability 12.0. The sizes are not timed yet.
"""

from __future__ import annotations

WARPS = 8
Blocks = dict[int, tuple[int, int, int]]  # up to this head size: queries, keys, stages

HOPPER: dict[str, Blocks] = {
    "forward": {64: (128, 64, 3), 128: (128, 128, 2), 256: (128, 32, 2)},
    "forward rotated": {64: (128, 64, 3), 128: (128, 64, 2), 256: (128, 32, 2)},
    "queries": {64: (128, 64, 3), 128: (128, 64, 3), 256: (128, 32, 2)},
    "queries rotated": {64: (128, 64, 3), 128: (64, 64, 2), 256: (16, 16, 1)},
    "keys": {64: (64, 128, 2), 128: (32, 128, 2), 256: (32, 32, 2)},
    "keys rotated": {64: (32, 128, 2), 128: (32, 64, 2), 256: (16, 16, 1)},
}
BLACKWELL: dict[str, Blocks] = {  # data-centre GPUs, which accumulate in tensor memory
    "forward": {64: (128, 64, 3), 128: (128, 128, 2), 256: (128, 32, 2)},
    "forward rotated": {64: (128, 64, 3), 128: (128, 64, 2), 256: (64, 32, 2)},
    "queries": {64: (128, 64, 3), 128: (128, 64, 3), 256: (64, 32, 2)},
    "queries rotated": {64: (128, 64, 2), 128: (64, 64, 2), 256: (16, 16, 1)},
    "keys": {64: (64, 128, 2), 128: (32, 128, 2), 256: (32, 32, 2)},
    "keys rotated": {64: (32, 128, 2), 128: (32, 128, 2), 256: (16, 16, 1)},
}
# GPUs without matmul instructions that read shared memory, with as little as 99 KB of it: 8.0 to 8.9, and 12.0.
OTHERS: dict[str, Blocks] = {
    "forward": {64: (128, 64, 3), 127: (128, 32, 2), 128: (128, 64, 3), 256: (64, 32, 2)},
    "forward rotated": {64: (128, 64, 2), 128: (128, 32, 2), 256: (32, 32, 2)},
    "queries": {64: (128, 64, 3), 128: (64, 64, 2), 256: (32, 32, 2)},
    "queries rotated": {64: (128, 32, 2), 128: (32, 32, 2), 256: (16, 16, 1)},
    "keys": {64: (64, 128, 2), 128: (32, 128, 2), 256: (32, 32, 2)},
    "keys rotated": {64: (32, 32, 2), 128: (32, 32, 2), 256: (16, 16, 1)},
}
FLOAT32: dict[str, Blocks] = {  # on every GPU: without tensor cores
    "forward": {64: (32, 32, 1), 256: (16, 16, 1)},
    "forward rotated": {64: (32, 32, 1), 256: (16, 16, 1)},
    "queries": {64: (32, 32, 1), 256: (16, 16, 1)},
    "queries rotated": {64: (32, 32, 1), 256: (16, 16, 1)},
    "keys": {128: (32, 32, 1), 256: (16, 16, 1)},
    "keys rotated": {64: (32, 32, 1), 128: (32, 16, 1), 256: (16, 16, 1)},
}


def configuration(part: str, head_size: int, narrow: bool, capability: int, rope: bool = False) -> dict[str, int]:
    """Blocks, warps and stages of "forward", or of the backward pass's "queries" or "keys".

    `narrow` means bfloat16; capability is 90 for Hopper's 9.0; rope: whether the kernel rotates q and k.
    """
    card = BLACKWELL if 100 <= capability < 120 else HOPPER if 90 <= capability < 100 else OTHERS
    sizes = (card if narrow else FLOAT32)[f"{part} rotated" if rope else part]
    queries, keys, stages = next(blocks for limit, blocks in sizes.items() if head_size <= limit)
    return {"queries": queries, "keys": keys, "num_warps": WARPS, "num_stages": stages}
