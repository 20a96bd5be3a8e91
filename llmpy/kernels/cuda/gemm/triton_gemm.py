"""GEMM in Triton with fused epilogues (problem.py lists them).

Programs compute the tiles of the result in groups of rows, so that programs that run together read the same panels of
both operands from the L2 cache. If the result has too few tiles for the GPU (gradients of weights: small matrices, sums
over all rows of a batch), several programs share the depth of each tile and write partial sums; a second kernel adds
them, always in the same order.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.gelu import gelu, gelu_gradient
from llmpy.kernels.cuda.gemm.problem import (
    BIAS_GELU,
    BIAS_RESIDUAL,
    COLUMN_SUMS,
    GELU_GRADIENT,
    NOTHING,
    NT,
    TN,
    Product,
)
from llmpy.kernels.cuda.gemm.tile_sizes import Tiles
from llmpy.kernels.cuda.primitives.reduce import add_column_sums
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.launch import cdiv, launch
from llmpy.kernels.cuda.runtime.workspace import scratch

GROUP = 8  # rows of tiles that are computed together
ADDED = 2**16 if device.INTERPRETED else 1024  # elements of a block of the kernel that adds parts
RESIDUAL, GELU, GRADIENT = tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)  # of problem.py, as constants of kernels


@triton.jit
def _finish(sums, c, bias, extra, m, n, M, N, c_columns, c_stride, extra_stride, epilogue: tl.constexpr,
            biased: tl.constexpr, accumulate: tl.constexpr, slices: tl.constexpr):  # fmt: skip
    """The epilogue of the tile that begins at row m, column n, one slice of columns after the other: registers do not
    hold the sums and everything that an epilogue reads at once."""
    height: tl.constexpr = sums.shape[0]
    width: tl.constexpr = sums.shape[1]
    if slices > 1:
        left, right = tl.split(tl.permute(tl.reshape(sums, (height, 2, width // 2)), (0, 2, 1)))
        _finish(left, c, bias, extra, m, n, M, N, c_columns, c_stride, extra_stride,
                epilogue, biased, accumulate, slices // 2)  # fmt: skip
        _finish(right, c, bias, extra, m, n + width // 2, M, N, c_columns, c_stride, extra_stride,
                epilogue, biased, accumulate, slices // 2)  # fmt: skip
    else:
        rows, columns = tl.arange(0, height), tl.arange(0, width)
        inside = (m + rows < M)[:, None] & (n + columns < c_columns)[None, :]
        at = c + m.to(tl.int64) * c_stride + n + rows[:, None] * c_stride + columns[None, :]
        other = extra + m.to(tl.int64) * extra_stride + n + rows[:, None] * extra_stride + columns[None, :]
        if biased:
            sums += tl.load(bias + n + columns, mask=n + columns < N, other=0.0).to(tl.float32)[None, :]
        if accumulate:
            sums += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if epilogue == RESIDUAL:
            sums += tl.load(other, mask=inside, other=0.0).to(tl.float32)
        if epilogue == GELU:
            kept = sums.to(extra.dtype.element_ty)
            tl.store(other, kept, mask=inside)
            sums = gelu(kept.to(tl.float32))
        if epilogue == GRADIENT:
            x = tl.load(other, mask=inside, other=0.0).to(tl.float32)
            sums *= gelu_gradient(x)
            tl.store(other, gelu(x).to(extra.dtype.element_ty), mask=inside)
        tl.store(at, sums.to(c.dtype.element_ty), mask=inside)


@triton.jit
def multiply_tile(c, a, b, bias, extra, M, N, K, a_rows, a_depth, c_columns, part_depth, a_stride, b_stride, c_stride,
                  extra_stride, a_turned: tl.constexpr, b_turned: tl.constexpr, whole: tl.constexpr,
                  accumulate: tl.constexpr, epilogue: tl.constexpr, biased: tl.constexpr, group: tl.constexpr,
                  slices: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
                  block_k: tl.constexpr):  # fmt: skip
    """A tile of c; a [M, K], or [K, M] if `a_turned` (transposed); b [K, N], or [N, K] if `b_turned`.

    `whole`: the depth is a multiple of block_k.
    a_rows, a_depth: as much as there is of a. Offsets within a tile fit 32 bits, those of tiles need not.
    """
    down, across = tl.cdiv(M, block_m), tl.cdiv(c_columns, block_n)
    at_group = tl.program_id(0) // (group * across) * group
    height = tl.minimum(down - at_group, group)
    within = tl.program_id(0) % (group * across)
    m, n = (at_group + within % height) * block_m, within // height * block_n
    part = tl.program_id(1)
    start = part * part_depth
    rows, columns, depth = tl.arange(0, block_m), tl.arange(0, block_n), tl.arange(0, block_k)

    if a_turned:
        a += start.to(tl.int64) * a_stride + m
        a_place, a_step = rows[:, None] + depth[None, :] * a_stride, a_stride.to(tl.int64) * block_k
    else:
        a += m.to(tl.int64) * a_stride + start
        a_place, a_step = rows[:, None] * a_stride + depth[None, :], block_k
    if b_turned:
        b += n.to(tl.int64) * b_stride + start
        b_place, b_step = columns[None, :] * b_stride + depth[:, None], block_k
    else:
        b += start.to(tl.int64) * b_stride + n
        b_place, b_step = columns[None, :] + depth[:, None] * b_stride, b_stride.to(tl.int64) * block_k
    a_inside, b_inside = (m + rows < a_rows)[:, None], (n + columns < N)[None, :]

    sums = tl.zeros([block_m, block_n], tl.float32)
    for k in range(start, tl.minimum(start + part_depth, K), block_k):
        if whole:
            a_tile = tl.load(a + a_place, mask=a_inside, other=0.0)
            b_tile = tl.load(b + b_place, mask=b_inside, other=0.0)
        else:
            a_tile = tl.load(a + a_place, mask=a_inside & (k + depth < a_depth)[None, :], other=0.0)
            b_tile = tl.load(b + b_place, mask=b_inside & (k + depth < K)[:, None], other=0.0)
        if a_tile.dtype == tl.bfloat16 and b_tile.dtype == tl.bfloat16:
            sums = tl.dot(a_tile, b_tile, sums)
        else:
            sums = tl.dot(a_tile.to(tl.float32), b_tile.to(tl.float32), sums, input_precision="ieee")
        a += a_step
        b += b_step

    c += part.to(tl.int64) * M * c_stride
    _finish(sums, c, bias, extra, m, n, M, N, c_columns, c_stride, extra_stride,
            epilogue, biased, accumulate, slices)  # fmt: skip


def slices(epilogue: int, accumulate: bool) -> int:
    """The number of slices of the epilogue of a tile: one if the epilogue reads only a bias."""
    return 4 if not device.INTERPRETED and (accumulate or epilogue in (BIAS_RESIDUAL, BIAS_GELU, GELU_GRADIENT)) else 1


@triton.jit
def add_parts(c, parts, count, size, accumulate: tl.constexpr, block: tl.constexpr):
    """c [size] = the sum of parts [count, size], from the first to the last, and of c if `accumulate`."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    total = tl.zeros([block], tl.float32)
    for _part in range(count):
        total += tl.load(parts + at, mask=inside, other=0.0)
        parts += size
    if accumulate:
        total += tl.load(c + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(c + at, total.to(c.dtype.element_ty), mask=inside)


def gemm(
    product: Product, tiles: Tiles, c: DeviceArray, a: DeviceArray, b: DeviceArray, bias: DeviceArray | None = None,
    extra: DeviceArray | None = None,
) -> None:  # fmt: skip
    """Computes the matmul that `describe` described, in tiles.

    Operands are float32 or bfloat16, in any mixture: tensor cores multiply two bfloat16; other pairs run in float32.
    """
    epilogue, target, split = product.epilogue, c, tiles.parts > 1
    if epilogue == COLUMN_SUMS:
        assert bias is not None
        add_column_sums(bias, a)
        bias, epilogue = None, NOTHING
    if split:
        target = scratch("parts of products", tiles.parts * product.M, product.N, dtype=np.float32)
    accumulate = product.accumulate and not split
    part_depth = cdiv(cdiv(product.K, tiles.parts), tiles.block_k) * tiles.block_k
    grid = (cdiv(product.M, tiles.block_m) * cdiv(target.shape[1], tiles.block_n), tiles.parts)
    launch(
        multiply_tile, grid, target, a, b, c if bias is None else bias, c if extra is None else extra,
        product.M, product.N, product.K, *(a.shape[::-1] if product.layout == TN else a.shape), target.shape[1],
        part_depth, product.a_stride, product.b_stride, product.N if split else product.c_stride, product.extra_stride,
        a_turned=product.layout == TN, b_turned=product.layout == NT, whole=product.K % tiles.block_k == 0,
        accumulate=accumulate, epilogue=epilogue, biased=bias is not None, group=GROUP,
        slices=slices(epilogue, accumulate), block_m=tiles.block_m, block_n=tiles.block_n, block_k=tiles.block_k,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if split:
        add_up(c, target, tiles.parts, product.accumulate)


def add_up(c: DeviceArray, parts: DeviceArray, count: int = 1, accumulate: bool = False) -> None:
    """c, of any type and shape, = the sum of `count` float32 arrays of its size, one behind the other; added to it if
    `accumulate`."""
    launch(add_parts, (cdiv(c.size, ADDED),), c, parts, count, c.size, accumulate=accumulate, block=ADDED)
