"""Tile sizes of the Triton GEMM: candidates to try on a GPU, and a guess for shapes that were never timed."""

from __future__ import annotations

from typing import NamedTuple

from llmpy.kernels.cuda.gemm.problem import NOTHING, Product
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, power_of_2


class Tiles(NamedTuple):
    """A program computes [block_m, block_n] of the result, block_k deep at a time, with `stages` loads in flight.

    `parts` programs share the depth of each tile; a second kernel adds their sums.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    parts: int = 1


# With the speed of a busy GPU, relative to the first: guesses, which `autotune.tuning` replaces by measurements.
LARGE = (  # up to 227 KB of shared memory: sm_90, sm_100
    (Tiles(128, 256, 64, 8, 3), 1.0),
    (Tiles(256, 128, 64, 8, 3), 0.98),
    (Tiles(128, 128, 64, 4, 4), 0.85),
    (Tiles(128, 64, 64, 4, 4), 0.65),
    (Tiles(64, 128, 64, 4, 4), 0.6),
    (Tiles(64, 64, 64, 4, 4), 0.4),
)
MEDIUM = (  # 163 KB: sm_80
    (Tiles(128, 256, 32, 8, 4), 1.0),
    (Tiles(256, 128, 32, 8, 4), 0.98),
    (Tiles(128, 128, 32, 4, 4), 0.9),
    (Tiles(128, 64, 32, 4, 4), 0.7),
    (Tiles(64, 128, 32, 4, 4), 0.7),
    (Tiles(64, 64, 32, 4, 4), 0.45),
)
SMALL = (  # 99 KB: sm_86, sm_89, sm_120
    (Tiles(128, 256, 32, 8, 3), 1.0),
    (Tiles(128, 128, 32, 8, 3), 0.95),
    (Tiles(128, 128, 64, 8, 3), 0.95),
    (Tiles(128, 64, 32, 4, 4), 0.75),
    (Tiles(64, 128, 32, 4, 4), 0.75),
    (Tiles(64, 64, 32, 4, 4), 0.5),
)
FLOAT32 = (  # no tensor cores: they have no float32
    (Tiles(128, 128, 16, 8, 3), 1.0),
    (Tiles(128, 64, 16, 8, 3), 0.9),
    (Tiles(64, 64, 16, 8, 3), 0.75),
    (Tiles(64, 32, 16, 4, 3), 0.5),
)
ROUGH = ((Tiles(64, 64, 32, 8, 3), 0.2),)  # elements are loaded one by one through registers, which hold few
PARTS = (1, 2, 3, 4, 6, 8, 12, 16)
DEEPEST = 1024  # the least depth of a part: less is not worth a second kernel
# Multiprocessors of the largest GPU of an architecture.
PROCESSORS = {(8, 0): 108, (8, 6): 84, (8, 9): 142, (9, 0): 132, (10, 0): 148, (10, 3): 160, (12, 0): 188}
# The time of a second kernel, in units of one tile [128, 256], 64 deep, on one multiprocessor.
SECOND_KERNEL = 10.0


def table(capability: tuple[int, int], is_bfloat16: bool, is_rough: bool = False) -> tuple[tuple[Tiles, float], ...]:
    """Tiles that fit the shared memory of an architecture, with their speed."""
    if is_rough:
        return ROUGH
    if not is_bfloat16:
        return FLOAT32
    if capability[0] in (9, 10):
        return LARGE
    return MEDIUM if capability in ((8, 0), (8, 7)) else SMALL


def candidates(product: Product, capability: tuple[int, int]) -> list[Tiles]:
    """Tiles worth trying for a matmul, the best guess first: all whose guessed time is at most twice the best."""
    rated = sorted(
        (_time(product, tiles._replace(parts=parts), speed, capability), tiles._replace(parts=parts))
        for tiles, speed in table(capability, product.is_bfloat16, product.is_rough)
        for parts in PARTS
        if parts == 1 or (may_split(product) and product.K >= parts * DEEPEST)
    )
    return [tiles for time, tiles in rated if time <= 2 * rated[0][0]]


def guess(product: Product, capability: tuple[int, int]) -> Tiles:
    """The tiles for a matmul that was never timed."""
    return interpreted(product) if INTERPRETED else candidates(product, capability)[0]


def interpreted(product: Product) -> Tiles:
    """Tiles for the interpreter, whose time depends on the number of operations: few programs, large blocks."""
    return Tiles(
        min(512, power_of_2(product.M)), min(512, power_of_2(product.N)), min(2048, power_of_2(product.K)), 1, 1
    )


def may_split(product: Product) -> bool:
    """Returns whether the depth can be split: a kernel without an epilogue adds the parts."""
    return product.epilogue == NOTHING and product.c_stride == product.N


def _time(product: Product, tiles: Tiles, speed: float, capability: tuple[int, int]) -> float:
    """The guessed time in units of one tile [128, 256], 64 deep: whole waves of tiles, each as deep as its part."""
    programs = cdiv(product.M, tiles.block_m) * cdiv(product.N, tiles.block_n) * tiles.parts
    waves = cdiv(programs, PROCESSORS.get(capability, 128))
    volume = tiles.block_m * tiles.block_n * cdiv(product.K, tiles.parts)
    return waves * volume / (128 * 256 * 64) / speed + (SECOND_KERNEL if tiles.parts > 1 else 0)
