"""Block sizes of the attention kernels for each kind of GPU.

The table holds the largest blocks that compile without spilling registers and fit the card's shared memory: they
reuse the most data. RoPE inside the kernel takes registers, so blocks are smaller with it. A few configurations spill
nevertheless: dq in float32 with RoPE from head size 128, and at 256; the backward pass with RoPE at 256; dk and dv at
128 on compute capability 12.0. None has been timed yet.
"""

from __future__ import annotations

WARPS = 8
Blocks = dict[int, tuple[int, int, int]]  # up to this head size: queries, keys, stages

HOPPER: dict[str, Blocks] = {
    "forward": {64: (128, 64, 3), 128: (128, 128, 2), 256: (128, 32, 2)},
    "forward turned": {64: (128, 64, 3), 128: (128, 64, 2), 256: (128, 32, 2)},
    "queries": {64: (128, 64, 3), 128: (128, 64, 3), 256: (128, 32, 2)},
    "queries turned": {64: (128, 64, 3), 128: (64, 64, 2), 256: (16, 16, 1)},
    "keys": {64: (64, 128, 2), 128: (32, 128, 2), 256: (32, 32, 2)},
    "keys turned": {64: (32, 128, 2), 128: (32, 64, 2), 256: (16, 16, 1)},
}
BLACKWELL: dict[str, Blocks] = {  # of servers, whose sums have a memory of their own
    "forward": {64: (128, 64, 3), 128: (128, 128, 2), 256: (128, 32, 2)},
    "forward turned": {64: (128, 64, 3), 128: (128, 64, 2), 256: (64, 32, 2)},
    "queries": {64: (128, 64, 3), 128: (128, 64, 3), 256: (64, 32, 2)},
    "queries turned": {64: (128, 64, 2), 128: (64, 64, 2), 256: (16, 16, 1)},
    "keys": {64: (64, 128, 2), 128: (32, 128, 2), 256: (32, 32, 2)},
    "keys turned": {64: (32, 128, 2), 128: (32, 128, 2), 256: (16, 16, 1)},
}
# What has no products straight from shared memory, and as little as 99 KB of that: 8.0 to 8.9, and 12.0.
OTHERS: dict[str, Blocks] = {
    "forward": {64: (128, 64, 3), 127: (128, 32, 2), 128: (128, 64, 3), 256: (64, 32, 2)},
    "forward turned": {64: (128, 64, 2), 128: (128, 32, 2), 256: (32, 32, 2)},
    "queries": {64: (128, 64, 3), 128: (64, 64, 2), 256: (32, 32, 2)},
    "queries turned": {64: (128, 32, 2), 128: (32, 32, 2), 256: (16, 16, 1)},
    "keys": {64: (64, 128, 2), 128: (32, 128, 2), 256: (32, 32, 2)},
    "keys turned": {64: (32, 32, 2), 128: (32, 32, 2), 256: (16, 16, 1)},
}
FLOAT32: dict[str, Blocks] = {  # on every card: without tensor cores
    "forward": {64: (32, 32, 1), 256: (16, 16, 1)},
    "forward turned": {64: (32, 32, 1), 256: (16, 16, 1)},
    "queries": {64: (32, 32, 1), 256: (16, 16, 1)},
    "queries turned": {64: (32, 32, 1), 256: (16, 16, 1)},
    "keys": {128: (32, 32, 1), 256: (16, 16, 1)},
    "keys turned": {64: (32, 32, 1), 128: (32, 16, 1), 256: (16, 16, 1)},
}


def configuration(part: str, head_size: int, narrow: bool, capability: int, rope: bool = False) -> dict[str, int]:
    """Returns blocks, warps and stages of "forward", or of the backward pass's "queries" or "keys" kernel.

    `narrow` means bfloat16; `capability` is 90 for Hopper's 9.0; `rope` tells whether the kernel rotates q and k.
    """
    card = BLACKWELL if 100 <= capability < 120 else HOPPER if 90 <= capability < 100 else OTHERS
    sizes = (card if narrow else FLOAT32)[f"{part} turned" if rope else part]
    queries, keys, stages = next(blocks for limit, blocks in sizes.items() if head_size <= limit)
    return {"queries": queries, "keys": keys, "num_warps": WARPS, "num_stages": stages}
