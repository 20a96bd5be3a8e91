"""The matrix product, C (+)= A B, in float32: packed panels, a tile of C in registers, and what follows fused to the
last pass.

After Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), with one twist. The operand
with fewer rows is packed once and shared by all threads; the other, larger one is never packed as a whole: a task packs
a block of it into its own cache, multiplies it by all of the shared operand, and forgets it. So at small batches the
weights are read from memory once and written nowhere.

The order of the sums depends on the depth alone, never on how the tasks fall to threads: results are the same, bit for
bit, for any number of them.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import get_num_threads, prange

from llmpy.kernels.cpu.compile import boolean, helper, i64, kernel, matrix, vector
from llmpy.kernels.cpu.isa import ISA
from llmpy.kernels.cpu.microkernel import ADD, STORE, STREAM, fetch_add, make_tile
from llmpy.kernels.cpu.packing import make_packer
from llmpy.kernels.cpu.vector_math import gelu, gelu_derivative
from llmpy.kernels.cpu.workspace import scratch

MR, NR = ISA.tile.rows, ISA.tile.columns
PASS_DEPTH = 768  # of the sum in one visit to a tile: visits to C are few, and panels still fit the L2 cache
BLOCK_FLOATS = 96 * 1024  # of the private operand packed at a time: 384 KB of the L2 cache
SHARED_FLOATS = 4 * 1024 * 1024  # of the shared operand packed at a time: 16 MB

NT, NN, TN = 0, 1, 2  # layouts: a [M, K] b [N, K]; a [M, K] b [K, N]; a [K, M] b [K, N]
NOTHING, BIAS, BIAS_RESIDUAL, BIAS_GELU, GELU_GRADIENT = 0, 1, 2, 3, 4  # epilogues

tile = make_tile(ISA.tile)
pack_a, pack_b = make_packer(MR, ISA.tile.width), make_packer(NR, ISA.tile.width)


Operand = namedtuple("Operand", "address stride along")
"""An operand where it lies: rows `stride` floats apart; `along`: the depth runs along memory, not across it."""

Task = namedtuple("Task", "share_a k0 k1 depth block parts accumulate stream epilogue")
"""What all threads know: which operand is shared, the slice of the depth, passes and blocks, and how it ends."""


@helper
def _pack(is_a, panel, a, b, p, M, N, k, depth):
    """Panel p of A or of B, `depth` deep from k on."""
    if is_a:
        offset = p * MR * a.stride + k if a.along else k * a.stride + p * MR
        pack_a(panel, a.address + offset * 4, a.stride, min(MR, M - p * MR), depth, a.along)
    else:
        offset = p * NR * b.stride + k if b.along else k * b.stride + p * NR
        pack_b(panel, b.address + offset * 4, b.stride, min(NR, N - p * NR), depth, b.along)


@helper
def _finish(c, i0, i1, j0, j1, epilogue, bias, extra):
    """What follows the product, on the tile c[i0:i1, j0:j1] while it is in the cache."""
    for i in range(i0, i1):
        y = c[i, j0:j1]
        if epilogue == BIAS:
            b = bias[j0:j1]
            for j in range(y.size):
                y[j] += b[j]
        elif epilogue == BIAS_RESIDUAL:
            b, residual = bias[j0:j1], extra[i, j0:j1]
            for j in range(y.size):
                y[j] += b[j] + residual[j]
        elif epilogue == BIAS_GELU:
            b, pre_gelu = bias[j0:j1], extra[i, j0:j1]
            for j in range(y.size):
                pre_gelu[j] = y[j] + b[j]
                y[j] = gelu(pre_gelu[j])
        else:
            pre_gelu = extra[i, j0:j1]
            for j in range(y.size):
                y[j] *= gelu_derivative(pre_gelu[j])


@helper
def _multiply(c, p, q, panel_a, panel_b, depth, ending, edge, last, epilogue, bias, extra):
    """Tile (p, q) of C from its two panels; `edge` [MR * NR] takes a tile that reaches over C's border."""
    M, N = c.shape
    i0, j0 = p * MR, q * NR
    i1, j1 = min(M, i0 + MR), min(N, j0 + NR)
    if i1 - i0 == MR and j1 - j0 == NR:
        tile(depth, panel_a, panel_b, c.ctypes.data + (i0 * N + j0) * 4, N, ending)
    else:
        tile(depth, panel_a, panel_b, edge.ctypes.data, NR, STORE)
        for i in range(i0, i1):
            for j in range(j0, j1):
                value = edge[(i - i0) * NR + j - j0]
                c[i, j] = c[i, j] + value if ending == ADD else value
    if last and epilogue != NOTHING:
        _finish(c, i0, i1, j0, j1, epilogue, bias, extra)


@helper
def _run_tasks(c, a, b, K, task, bias, extra, shared, private, counter):
    """One thread's share: blocks of private panels by parts of the shared ones, taken one by one until the end."""
    M, N = c.shape
    panels_a, panels_b = (M + MR - 1) // MR, (N + NR - 1) // NR
    shared_panels, private_panels = (panels_a, panels_b) if task.share_a else (panels_b, panels_a)
    shared_rows, private_rows = (MR, NR) if task.share_a else (NR, MR)
    blocks = (private_panels + task.block - 1) // task.block
    base, edge = private.ctypes.data, private[private.shape[0] - MR * NR :]
    while True:
        number = fetch_add(counter)
        if number >= blocks * task.parts:
            return
        first, part = number // task.parts * task.block, number % task.parts
        end = min(private_panels, first + task.block)
        for k in range(task.k0, task.k1, task.depth):
            depth = min(task.depth, task.k1 - k)
            for p in range(first, end):
                panel = base + (p - first) * depth * private_rows * 4
                _pack(not task.share_a, panel, a, b, p, M, N, k, depth)
            last = k + depth == K
            ending = ADD if task.accumulate or k > 0 else STREAM if task.stream and last else STORE
            for s in range(shared_panels * part // task.parts, shared_panels * (part + 1) // task.parts):
                shared_panel = shared + ((k - task.k0) * shared_panels + s * depth) * shared_rows * 4
                for p in range(first, end):
                    panel = base + (p - first) * depth * private_rows * 4
                    i, j = (s, p) if task.share_a else (p, s)
                    panel_a, panel_b = (shared_panel, panel) if task.share_a else (panel, shared_panel)
                    _multiply(c, i, j, panel_a, panel_b, depth, ending, edge, last, task.epilogue, bias, extra)


@kernel(matrix, matrix, matrix, i64, boolean, i64, vector, matrix, i64, i64, i64, i64, vector, matrix, i64[::1])
def _gemm(c, x, w, layout, accumulate, epilogue, bias, extra, depth, slice_depth, block, parts, shared, private, count):
    """c = x w in passes `depth` deep; the shared operand is packed `slice_depth` deep at a time, for all threads."""
    M, N = c.shape
    K = x.shape[0] if layout == TN else x.shape[1]
    share_a = M <= N
    shared_panels, shared_rows = ((M + MR - 1) // MR, MR) if share_a else ((N + NR - 1) // NR, NR)
    for k0 in range(0, K, slice_depth):
        a = Operand(x.ctypes.data, x.shape[1], layout != TN)
        b = Operand(w.ctypes.data, w.shape[1], layout == NT)
        k1 = min(K, k0 + slice_depth)
        passes = (k1 - k0 + depth - 1) // depth
        for job in prange(shared_panels * passes):
            s, k = job // passes, k0 + job % passes * depth
            pass_depth = min(depth, k1 - k)
            panel = shared.ctypes.data + ((k - k0) * shared_panels + s * pass_depth) * shared_rows * 4
            _pack(share_a, panel, a, b, s, M, N, k, pass_depth)
        # Gradients of weights are next read by the optimizer, when no cache has them any more.
        stream = layout == TN and epilogue == NOTHING and c.ctypes.data % 64 == 0 and N % 16 == 0
        task = Task(share_a, k0, k1, depth, block, parts, accumulate, stream, epilogue)
        count[0] = 0
        for thread in prange(private.shape[0]):
            _run_tasks(c, a, b, K, task, bias, extra, shared.ctypes.data, private[thread], count.ctypes.data)


_NO_VECTOR, _NO_MATRIX = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)


def gemm(c, a, b, layout, accumulate=False, epilogue=NOTHING, bias=_NO_VECTOR, extra=_NO_MATRIX):
    """c [M, N] = A B, or += with `accumulate`; then the epilogue: bias [N], and extra [M, N] as residual, GELU's input
    or output."""
    if not ISA.own_gemm:
        _gemm_numpy(c, a, b, layout, accumulate, epilogue, bias, extra)
        return
    (M, N), K, threads = c.shape, len(a) if layout == TN else a.shape[1], get_num_threads()
    rows_a, rows_b = -(-M // MR) * MR, -(-N // NR) * NR
    shared_rows, private_rows, private_panel = (rows_a, rows_b, NR) if M <= N else (rows_b, rows_a, MR)
    # Passes of equal depth, short enough for the shared operand to fit its buffer. They depend on nothing but the
    # shapes, and so does the order of the sums.
    deepest = min(PASS_DEPTH, max(16, SHARED_FLOATS // shared_rows))
    depth = -(-K // -(-K // deepest) // 16) * 16
    slice_depth = max(1, SHARED_FLOATS // (shared_rows * depth)) * depth
    # Enough tasks to keep all threads busy to the end: smaller blocks first, then parts of the shared operand.
    panels = private_rows // private_panel
    block = max(1, min(BLOCK_FLOATS // (depth * private_panel), panels // (4 * threads)))
    parts = min(shared_rows // (MR if M <= N else NR), -(-4 * threads // -(-panels // block)))
    shared = scratch("gemm shared", max(SHARED_FLOATS, shared_rows * depth))
    private = scratch("gemm private", threads, BLOCK_FLOATS + (PASS_DEPTH + 16) * NR + MR * NR)[:threads]
    count = scratch("gemm count", 8, dtype=np.int64)
    _gemm(c, a, b, layout, accumulate, epilogue, bias, extra, depth, slice_depth, block, parts, shared, private, count)


def _gemm_numpy(c, a, b, layout, accumulate, epilogue, bias, extra):
    """The same on a processor whose vectors we have no tile for: the product by NumPy's library, the rest by us."""
    a, b = a.T if layout == TN else a, b.T if layout == NT else b
    if accumulate:
        c += a @ b
    else:
        np.matmul(a, b, out=c)
    if epilogue != NOTHING:
        _finish_rows(c, epilogue, bias, extra)


@kernel(matrix, i64, vector, matrix)
def _finish_rows(c, epilogue, bias, extra):
    for i in prange(c.shape[0]):
        _finish(c, i, i + 1, 0, c.shape[1], epilogue, bias, extra)
