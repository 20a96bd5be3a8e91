"""The matrix product, C (+)= A B, in float32: packed panels, a tile of C in registers, and what follows fused to the last pass.

After Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), with one twist. The operand with fewer rows is packed
once and shared by all threads; the other, larger one is never packed as a whole: a task packs a block of it into its own cache, multiplies it by
all of the shared operand, and forgets it. So at small batches the weights are read from memory once and written nowhere.

The order of the sums depends on the depth alone, never on how the tasks fall to threads: results are the same, bit for bit, for any number of them.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, prange

from llmpy.kernels.cpu.compile import boolean, helper, i64, kernel, matrix, vector
from llmpy.kernels.cpu.isa import ISA
from llmpy.kernels.cpu.microkernel import fetch_add, make_tile
from llmpy.kernels.cpu.packing import make_packer
from llmpy.kernels.cpu.vector_math import gelu, gelu_derivative
from llmpy.kernels.cpu.workspace import scratch

MR, NR = ISA.tile.rows, ISA.tile.columns
PASS_DEPTH = 768  # of the sum in one visit to a tile: long enough that visits to C are few, short enough for the panels to stay in L2
BLOCK_FLOATS = 96 * 1024  # of the private operand packed at a time: 384 KB of the L2 cache
SHARED_FLOATS = 4 * 1024 * 1024  # of the shared operand packed at a time: 16 MB

NT, NN, TN = 0, 1, 2  # layouts: a [M, K] b [N, K]; a [M, K] b [K, N]; a [K, M] b [K, N]
NOTHING, BIAS, BIAS_RESIDUAL, BIAS_GELU, GELU_GRADIENT = 0, 1, 2, 3, 4  # epilogues

tile = make_tile(ISA.tile)
pack_a, pack_b = make_packer(MR, ISA.tile.width), make_packer(NR, ISA.tile.width)


@helper
def _pack(is_a, panel, a, a_stride, a_along, b, b_stride, b_along, p, M, N, k, depth):
    """Panel p of A or of B, `depth` deep from k on."""
    if is_a:
        offset = p * MR * a_stride + k if a_along else k * a_stride + p * MR
        pack_a(panel, a + offset * 4, a_stride, min(MR, M - p * MR), depth, a_along)
    else:
        offset = p * NR * b_stride + k if b_along else k * b_stride + p * NR
        pack_b(panel, b + offset * 4, b_stride, min(NR, N - p * NR), depth, b_along)


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
def _multiply(c, p, q, panel_a, panel_b, depth, add, edge, last, epilogue, bias, extra):
    """Tile (p, q) of C from its two panels; `edge` [MR * NR] takes a tile that reaches over C's border."""
    M, N = c.shape
    i0, j0 = p * MR, q * NR
    i1, j1 = min(M, i0 + MR), min(N, j0 + NR)
    if i1 - i0 == MR and j1 - j0 == NR:
        tile(depth, panel_a, panel_b, c.ctypes.data + (i0 * N + j0) * 4, N, add)
    else:
        tile(depth, panel_a, panel_b, edge.ctypes.data, NR, False)
        for i in range(i0, i1):
            for j in range(j0, j1):
                value = edge[(i - i0) * NR + j - j0]
                c[i, j] = c[i, j] + value if add else value
    if last and epilogue != NOTHING:
        _finish(c, i0, i1, j0, j1, epilogue, bias, extra)


@helper
def _run_tasks(c, share_a, a, a_stride, a_along, b, b_stride, b_along, k0, k1, K, depth, accumulate, epilogue, bias, extra, shared, private,
               counter, block, parts):  # fmt: skip
    """One thread's share: tasks are taken one by one until there are none. A task is a block of private panels by a part of the shared ones."""
    M, N = c.shape
    panels_a, panels_b = (M + MR - 1) // MR, (N + NR - 1) // NR
    shared_panels, private_panels = (panels_a, panels_b) if share_a else (panels_b, panels_a)
    shared_rows, private_rows = (MR, NR) if share_a else (NR, MR)
    blocks = (private_panels + block - 1) // block
    base, edge = private.ctypes.data, private[private.shape[0] - MR * NR :]
    while True:
        task = fetch_add(counter)
        if task >= blocks * parts:
            return
        first, part = task // parts * block, task % parts
        end = min(private_panels, first + block)
        for k in range(k0, k1, depth):
            pass_depth = min(depth, k1 - k)
            for p in range(first, end):
                panel = base + (p - first) * pass_depth * private_rows * 4
                _pack(not share_a, panel, a, a_stride, a_along, b, b_stride, b_along, p, M, N, k, pass_depth)
            add, last = accumulate or k > 0, k + pass_depth == K
            for s in range(shared_panels * part // parts, shared_panels * (part + 1) // parts):
                shared_panel = shared + ((k - k0) * shared_panels + s * pass_depth) * shared_rows * 4
                for p in range(first, end):
                    private_panel = base + (p - first) * pass_depth * private_rows * 4
                    i, j, panel_a, panel_b = (s, p, shared_panel, private_panel) if share_a else (p, s, private_panel, shared_panel)
                    _multiply(c, i, j, panel_a, panel_b, pass_depth, add, edge, last, epilogue, bias, extra)


@kernel(matrix, matrix, matrix, i64, boolean, i64, vector, matrix, i64, i64, i64, i64, vector, matrix, i64[::1])
def _gemm(c, a, b, layout, accumulate, epilogue, bias, extra, depth, slice_depth, block, parts, shared, private, counter):
    """A pass is `depth` deep; the shared operand is packed `slice_depth` deep at a time; a task is `block` private panels by one of `parts`."""
    M, N = c.shape
    K = a.shape[0] if layout == TN else a.shape[1]
    share_a = M <= N
    shared_panels, shared_rows = ((M + MR - 1) // MR, MR) if share_a else ((N + NR - 1) // NR, NR)
    a_at, b_at, shared_at, counter_at = a.ctypes.data, b.ctypes.data, shared.ctypes.data, counter.ctypes.data
    a_stride, b_stride, a_along, b_along = a.shape[1], b.shape[1], layout != TN, layout == NT
    for k0 in range(0, K, slice_depth):
        k1 = min(K, k0 + slice_depth)
        passes = (k1 - k0 + depth - 1) // depth
        for job in prange(shared_panels * passes):
            s, k = job // passes, k0 + job % passes * depth
            pass_depth = min(depth, k1 - k)
            panel = shared_at + ((k - k0) * shared_panels + s * pass_depth) * shared_rows * 4
            _pack(share_a, panel, a_at, a_stride, a_along, b_at, b_stride, b_along, s, M, N, k, pass_depth)
        counter[0] = 0
        for thread in prange(private.shape[0]):
            _run_tasks(c, share_a, a_at, a_stride, a_along, b_at, b_stride, b_along, k0, k1, K, depth, accumulate, epilogue, bias, extra,
                       shared_at, private[thread], counter_at, block, parts)  # fmt: skip


_NO_VECTOR, _NO_MATRIX = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)


def gemm(c, a, b, layout, accumulate=False, epilogue=NOTHING, bias=_NO_VECTOR, extra=_NO_MATRIX):
    """c [M, N] = A B, or += with `accumulate`; then the epilogue: bias [N], and extra [M, N] as residual, GELU's input or output."""
    if not ISA.own_gemm:
        _gemm_numpy(c, a, b, layout, accumulate, epilogue, bias, extra)
        return
    (M, N), K, threads = c.shape, len(a) if layout == TN else a.shape[1], get_num_threads()
    panels_a, panels_b = -(-M // MR), -(-N // NR)
    (shared_rows, private_panels, private_rows) = (panels_a * MR, panels_b, NR) if M <= N else (panels_b * NR, panels_a, MR)
    # Passes of equal depth, so short that the shared operand fits its buffer. They depend on the shapes only: so does the order of the sums.
    passes = max(-(-K // PASS_DEPTH), -(-shared_rows * K // SHARED_FLOATS) if shared_rows * PASS_DEPTH > SHARED_FLOATS else 1)
    depth = -(-K // passes // 16) * 16
    slice_depth = max(1, SHARED_FLOATS // (shared_rows * depth)) * depth
    # Enough tasks to keep all threads busy to the end: smaller blocks first, then parts of the shared operand.
    block = max(1, min(BLOCK_FLOATS // (depth * private_rows), private_panels // (4 * threads)))
    parts = min(shared_rows // (MR if M <= N else NR), -(-4 * threads // -(-private_panels // block)))
    shared = scratch("gemm shared", max(SHARED_FLOATS, shared_rows * depth))
    private = scratch("gemm private", threads, BLOCK_FLOATS + (PASS_DEPTH + 16) * NR + MR * NR)[:threads]
    counter = scratch("gemm counter", 8, dtype=np.int64)
    _gemm(c, a, b, layout, accumulate, epilogue, bias, extra, depth, slice_depth, block, parts, shared, private, counter)


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
