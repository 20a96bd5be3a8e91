"""A stable sort of tokens on the device: the rows of each token, in the order of the rows.

The sort uses no atomics, so the order is always the same, and the host never reads the tokens, so a CUDA graph can hold
the sort. Runs are sorted separately. The place of a token is then its place in its run, plus the number of tokens of
every other run that come before it. This is cheap up to a million rows.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import cdiv, launch
from llmpy.kernels.cuda.runtime.workspace import scratch

RUN = 128 if INTERPRETED else 4096  # a power of 2: a key is token * RUN + place, and int32
BLOCK, ACROSS = (128, 128) if INTERPRETED else (32, 128)  # keys of a program, and what they are compared with at a time
LAST = tl.constexpr(2**31 - 1)


@triton.jit
def _key(tokens, place, start, N, T, token_stride, run: tl.constexpr):
    """The keys of places in the run that begins at row `start`; past the end, of the largest token there can be."""
    row = start + place
    b, t = row // T, row % T
    token = tl.load(tokens + b.to(tl.int64) * token_stride + t, mask=row < N, other=LAST // run)
    return token * run + place


@triton.jit
def _sort_run(keys, tokens, N, T, token_stride, run: tl.constexpr, block: tl.constexpr, across: tl.constexpr):
    """Program (i, j) puts the j-th block of run i where it belongs: as many places on as there are smaller keys."""
    start = tl.program_id(0) * run
    own = _key(tokens, tl.program_id(1) * block + tl.arange(0, block), start, N, T, token_stride, run)
    smaller = tl.zeros((block, across), tl.int32)
    for first in range(0, run, across):
        other = _key(tokens, first + tl.arange(0, across), start, N, T, token_stride, run)
        smaller += (other[None, :] < own[:, None]).to(tl.int32)
    tl.store(keys + start + tl.sum(smaller, 1), own)


@triton.jit
def _merge_runs(order, sorted_tokens, keys, N, halvings: tl.constexpr, run: tl.constexpr, block: tl.constexpr):
    """Program (i, j) finds out where the j-th block of the sorted run i belongs among all."""
    own_run, runs = tl.program_id(0), tl.num_programs(0)
    place = tl.program_id(1) * block + tl.arange(0, block)
    key = tl.load(keys + own_run * run + place)
    token, row = key // run, own_run * run + key % run
    for other in range(runs):
        # Of equal tokens those of earlier runs come first; in its own run, this key stays where it is.
        limit = token * run + tl.where(other < own_run, run - 1, -1)
        count = tl.zeros((block,), tl.int32)
        for halving in tl.static_range(halvings):
            probe = count + (run >> halving)
            found = tl.load(keys + other * run + probe - 1, mask=probe <= run, other=LAST) <= limit
            count = tl.where(found & (probe <= run), probe, count)
        place += tl.where(other == own_run, 0, count)
    tl.store(order + place, row, mask=row < N)
    tl.store(sorted_tokens + place, token, mask=row < N)


def order_of(tokens: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """tokens int32 [B, T] -> scratch, int32 [B * T]: the rows b * T + t in the order of their tokens, and the tokens in
    that order. Tokens are below 2^31 / RUN = 524,288."""
    B, T = tokens.shape
    N, runs = B * T, cdiv(B * T, RUN)
    keys = scratch("embedding keys", runs * RUN, dtype=np.int32)
    order, sorted_tokens = scratch("embedding order", 2, N, dtype=np.int32)
    grid = runs, RUN // BLOCK
    options = {"run": RUN, "block": BLOCK}
    launch(_sort_run, grid, keys, tokens, N, T, tokens.strides[0], across=ACROSS, **options)
    launch(_merge_runs, grid, order, sorted_tokens, keys, N, halvings=RUN.bit_length(), **options)
    return order, sorted_tokens
