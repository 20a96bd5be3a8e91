"""The matrix product, C (+)= A B: packed panels, a tile of C in registers, and what follows fused to the last pass.

After Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), with one twist. The operand
with fewer rows is packed once and shared by all threads; the other, larger one is never packed as a whole: a task packs
a block of it into its own cache, multiplies it by all of the shared operand, and forgets it. So at small batches the
weights are read from memory once and written nowhere. Weights that are packed already (weights.py) are read as they
lie.

The order of the sums depends on the depth alone, never on how the tasks fall to threads: results are the same, bit for
bit, for any number of them.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import ml_dtypes
import numpy as np
from numba import get_num_threads, prange, types

from llmpy.kernels.cpu.gemm.dequantize_ir import widen_row
from llmpy.kernels.cpu.gemm.epilogue import BIAS_RESIDUAL, GELU_GRADIENT, NOTHING, finish
from llmpy.kernels.cpu.gemm.microkernel_vector import ADD, STORE, STREAM
from llmpy.kernels.cpu.gemm.microkernels import BFLOAT16, FLOAT32, Products
from llmpy.kernels.cpu.gemm.packed_weight import Operand, Weight, operand_of
from llmpy.kernels.cpu.jit.compile import Activations, acts2, boolean, helper, i64, kernel, matrix, vector
from llmpy.kernels.cpu.jit.intrinsics import fetch_add, prefetch
from llmpy.kernels.cpu.jit.isa import ISA
from llmpy.kernels.cpu.jit.scratch import scratch
from llmpy.quant.matrix import Matrix

PASS_DEPTH = 768  # of the sum in one visit to a float32 tile: visits to C are few, and panels still fit the L2 cache
PAIR_PASS_DEPTH = 1536  # the same in bfloat16
WHOLE_DEPTH = 4096  # up to here, sums that end in bfloat16 are made in one visit; beyond, in a float32 array first
BLOCK_BYTES = 384 * 1024  # of the private operand packed at a time, in the L2 cache
# What the largest block takes (one panel as deep as they come), and a tile of sums.
PRIVATE_BYTES = max(BLOCK_BYTES, BFLOAT16.NR * WHOLE_DEPTH * BFLOAT16.item) + 128 * 1024
PIECE = 256  # elements of a panel's row that are dequantized at a time: the largest block there is
PIECE_STRIDE = PIECE + 16  # rows of a panel must not all fall into the same sets of the first cache
SHARED_BYTES = 16 * 1024 * 1024  # of the shared operand packed at a time

NT, NN, TN = 0, 1, 2  # layouts: a [M, K] b [N, K]; a [M, K] b [K, N]; a [K, M] b [K, N]

Task = namedtuple("Task", "k0 k1 depth slice_depth block parts accumulate epilogue stream")
"""What all threads know: the slice of the depth, its passes, the blocks and parts of the work, and how it ends."""


def _make_helpers(P: Products) -> tuple[Any, Any]:
    """pack_shared and run_tasks, for one kind of product."""
    MR, NR, item, step, tile = P.MR, P.NR, P.item, P.step, P.tile
    pack_a, pack_b, pack_b_rows, begin, end = P.pack_a, P.pack_b, P.pack_b_rows, P.begin, P.end

    @helper
    def pack_blocks(panel, operand, first, rows, k, depth):
        """Packs the rows from `first` on of a quantized B: dequantizes a piece into the cache, then packs it.

        Rows beyond the matrix stay 0.
        """
        space = np.zeros(NR * PIECE_STRIDE, np.float32)
        for at in range(0, depth, PIECE):
            n = min(PIECE, depth - at)
            for r in range(rows):
                row = operand.address + (first + r) * operand.stride
                widen_row(operand.blocks, row, k + at, n, space.ctypes.data + r * PIECE_STRIDE * 4)
            pack_b_rows(panel + at * NR * item, space.ctypes.data, PIECE_STRIDE, n)

    @helper
    def pack(is_a, panel, operand, p, rows, k, depth):
        """Panel p of an operand of so many rows, `depth` deep from k on."""
        R = MR if is_a else NR
        if operand.blocks != 0:
            pack_blocks(panel, operand, p * R, min(R, rows - p * R), k, depth)
            return
        offset = p * R * operand.stride + k if operand.along else k * operand.stride + p * R
        source = operand.address + offset * (4 if operand.wide else 2)
        if is_a:
            pack_a(panel, source, operand.stride, min(R, rows - p * R), depth, operand.along, operand.wide)
        else:
            pack_b(panel, source, operand.stride, min(R, rows - p * R), depth, operand.along, operand.wide)

    @helper
    def pack_shared(job, shared, share_a, operand, rows, task):
        """A piece of the shared operand, one pass deep: job counts passes first, then panels."""
        passes = (task.k1 - task.k0 + task.depth - 1) // task.depth
        p, k = job // passes, task.k0 + job % passes * task.depth
        panel = shared + (p * task.slice_depth + k - task.k0) * (MR if share_a else NR) * item
        pack(share_a, panel, operand, p, rows, k, min(task.depth, task.k1 - k))

    @helper
    def multiply(c, p, q, panel_a, panel_b, depth, ending, sums, epilogue, bias, extra):
        """Tile (p, q) of C from its two panels; `sums` [2 * MR * NR] takes a tile that something follows, that ends
        in bfloat16, or that reaches over C's border."""
        M, N = c.shape
        i0, j0 = p * MR, q * NR
        if epilogue == NOTHING and c.itemsize == 4 and i0 + MR <= M and j0 + NR <= N:
            tile(depth, panel_a, panel_b, c.ctypes.data + (i0 * N + j0) * 4, N, ending)
        else:
            if epilogue in (BIAS_RESIDUAL, GELU_GRADIENT):  # read when the sums are made
                at = extra.ctypes.data + (i0 * N + j0) * extra.itemsize
                prefetch(at, NR * extra.itemsize, min(MR, M - i0), N * extra.itemsize)
            tile(depth, panel_a, panel_b, sums.ctypes.data, NR, STORE)
            finish(c, sums, NR, i0, j0, ending == ADD, epilogue, bias, extra)

    @helper
    def run_tasks(c, a, b, share_a, K, task, bias, extra, shared, private, counter):
        """One thread's share: blocks of private panels by parts of the shared ones, taken one by one until the end."""
        M, N = c.shape
        panels_a, panels_b = (M + MR - 1) // MR, (N + NR - 1) // NR
        shared_panels, private_panels = (panels_a, panels_b) if share_a else (panels_b, panels_a)
        shared_bytes, private_bytes = (MR * item, NR * item) if share_a else (NR * item, MR * item)
        theirs, own, rows = (a, b, N) if share_a else (b, a, M)
        blocks = (private_panels + task.block - 1) // task.block
        sums = private[private.shape[0] - 2 * MR * NR :]
        begin()
        number = fetch_add(counter)
        while number < blocks * task.parts:
            following = fetch_add(counter)
            first, part = number // task.parts * task.block, number % task.parts
            stop = min(private_panels, first + task.block)
            for k in range(task.k0, task.k1, task.depth):
                depth = min(task.depth, task.k1 - k)
                whole = (depth + step - 1) // step * step
                last = k + depth == K
                ending = ADD if task.accumulate or k > 0 else STREAM if task.stream and last else STORE
                if own.packed:
                    at_own, span_own = own.address + (first * own.stride + k) * private_bytes, own.stride
                else:
                    at_own, span_own = private.ctypes.data, whole
                    for p in range(first, stop):
                        pack(not share_a, at_own + (p - first) * whole * private_bytes, own, p, rows, k, depth)
                if theirs.packed:
                    at_shared, span_shared = theirs.address + k * shared_bytes, theirs.stride
                else:
                    at_shared, span_shared = shared + (k - task.k0) * shared_bytes, task.slice_depth
                epilogue = task.epilogue if last else NOTHING
                s0, s1 = shared_panels * part // task.parts, shared_panels * (part + 1) // task.parts
                ahead, share = np.int64(0), np.int64(0)
                if own.packed:  # what comes next is brought nearer meanwhile, a share of it with every shared panel
                    if k + depth < task.k1:
                        ahead = at_own + whole * private_bytes
                    elif following < blocks * task.parts:
                        ahead = (
                            own.address + (following // task.parts * task.block * own.stride + task.k0) * private_bytes
                        )
                    share = ((stop - first) * whole * private_bytes // (s1 - s0) + 63) // 64 * 64
                for s in range(s0, s1):
                    if ahead > 0:
                        prefetch(ahead + (s - s0) * share, share, 1, 0)
                    shared_panel = at_shared + s * span_shared * shared_bytes
                    for p in range(first, stop):
                        panel = at_own + (p - first) * span_own * private_bytes
                        i, j = (s, p) if share_a else (p, s)
                        panel_a, panel_b = (shared_panel, panel) if share_a else (panel, shared_panel)
                        multiply(c, i, j, panel_a, panel_b, whole, ending, sums, epilogue, bias, extra)
            number = following
        end()

    return pack_shared, run_tasks


_pack_shared_float32, _run_tasks_float32 = _make_helpers(FLOAT32)
_pack_shared_bfloat16, _run_tasks_bfloat16 = _make_helpers(BFLOAT16)
_result = Activations(2, or_float32=True)
_operand = types.NamedTuple((i64, i64, boolean, boolean, boolean, i64), Operand)
_task = types.NamedTuple((i64, i64, i64, i64, i64, i64, boolean, i64, boolean), Task)
_signature = (_result, _operand, _operand, boolean, i64, _task, vector, acts2, i64, i64, matrix, matrix, i64[::1])


@kernel(*_signature, precisions=("float32",))
def _gemm_float32(c, a, b, share_a, K, task, bias, extra, pieces, threads, shared, private, count):
    """One slice of the depth: the shared operand is packed in `pieces`, then the threads take tasks."""
    for job in prange(pieces):
        operand, rows = (a, c.shape[0]) if share_a else (b, c.shape[1])
        _pack_shared_float32(job, shared.ctypes.data, share_a, operand, rows, task)
    count[0] = 0
    for thread in prange(threads):
        space = private[thread]
        _run_tasks_float32(c, a, b, share_a, K, task, bias, extra, shared.ctypes.data, space, count.ctypes.data)


@kernel(*_signature, precisions=("bfloat16",))
def _gemm_bfloat16(c, a, b, share_a, K, task, bias, extra, pieces, threads, shared, private, count):
    """Runs the GEMM in bfloat16; see _gemm_float32."""
    for job in prange(pieces):
        operand, rows = (a, c.shape[0]) if share_a else (b, c.shape[1])
        _pack_shared_bfloat16(job, shared.ctypes.data, share_a, operand, rows, task)
    count[0] = 0
    for thread in prange(threads):
        space = private[thread]
        _run_tasks_bfloat16(c, a, b, share_a, K, task, bias, extra, shared.ctypes.data, space, count.ctypes.data)


_NO_VECTOR, _NO_MATRIX = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
_NO_BFLOAT16 = np.zeros((0, 0), ml_dtypes.bfloat16)


def gemm(c, a, b, layout, accumulate=False, epilogue=NOTHING, bias=_NO_VECTOR, extra=None):
    """c [M, N] = A B, or += with `accumulate`; then the epilogue: bias [N], and `extra` [M, N] as residual, GELU's
    output or input (which GELU_GRADIENT replaces by its GELU).

    All float32; or in bfloat16, where an operand may be float32 (rounded on the way into its panels, if they are
    bfloat16), c may be either, and b may be a `Weight` for the layouts NT and NN. In both, b may be a Matrix of any
    type for NT.
    """
    arrays = (c, a) if isinstance(b, Matrix | Weight) else (c, a, b)
    narrow = isinstance(b, Weight) or any(array.dtype == ml_dtypes.bfloat16 for array in arrays)
    if extra is None:
        extra = _NO_BFLOAT16 if narrow else _NO_MATRIX
    if not narrow and not ISA.own_gemm and not isinstance(b, Matrix):
        _gemm_numpy(c, a, b, layout, accumulate, epilogue, bias, extra)
        return
    (M, N), K = c.shape, len(a) if layout == TN else a.shape[1]
    if c.dtype == ml_dtypes.bfloat16 and K > WHOLE_DEPTH:
        sums = scratch("gemm sums", M * N)[: M * N].reshape(M, N)
        _multiply(BFLOAT16, sums, a, b, layout, K, False, NOTHING, bias, extra)
        _finish_rows(c, sums, accumulate, epilogue, bias, extra)
    else:
        _multiply(BFLOAT16 if narrow else FLOAT32, c, a, b, layout, K, accumulate, epilogue, bias, extra)


def _multiply(P, c, a, b, layout, K, accumulate, epilogue, bias, extra):
    """Cuts the work into passes, blocks and parts, and has it done."""
    (M, N), threads = c.shape, get_num_threads()
    first, second = _operand_of(a, layout != TN), _operand_of(b, layout == NT, layout)
    share_a = M <= N
    shared_R, own_R, shared_rows, own_rows = (P.MR, P.NR, M, N) if share_a else (P.NR, P.MR, N, M)
    shared_panels, own_panels = -(-shared_rows // shared_R), -(-own_rows // own_R)
    # Passes of equal depth, short enough for the shared operand to fit its buffer. They depend on nothing but the
    # shapes, and so does the order of the sums.
    longest = PASS_DEPTH if P is FLOAT32 else PAIR_PASS_DEPTH if c.dtype == np.float32 else WHOLE_DEPTH
    widest = SHARED_BYTES // (shared_panels * shared_R * P.item)
    deepest = min(longest, max(32, widest)) if c.dtype == np.float32 else WHOLE_DEPTH
    step = max(32, b.kind.numbers) if isinstance(b, Matrix) else 32
    depth = -(-K // -(-K // deepest) // step) * step
    slice_depth = max(1, widest // depth) * depth
    # Enough tasks to keep all threads busy to the end: smaller blocks first, then parts of the shared operand.
    block = max(1, min(BLOCK_BYTES // (depth * own_R * P.item), own_panels // (4 * threads)))
    parts = min(shared_panels, -(-4 * threads // -(-own_panels // block)))
    shared = scratch("gemm shared", 1, max(SHARED_BYTES, shared_panels * shared_R * depth * P.item) // 4)
    private = scratch("gemm private", threads, PRIVATE_BYTES // 4)
    count = scratch("gemm count", 8, dtype=np.int64)
    packed = (first if share_a else second).packed
    # Gradients of weights are next read by the optimizer, when no cache has them any more.
    stream = layout == TN and epilogue == NOTHING and c.ctypes.data % 64 == 0 and N % 16 == 0
    run = _gemm_float32 if P is FLOAT32 else _gemm_bfloat16
    for k0 in range(0, K, slice_depth):
        k1 = min(K, k0 + slice_depth)
        task = Task(k0, k1, depth, min(slice_depth, -(-K // depth) * depth), block, parts, accumulate, epilogue, stream)
        pieces = 0 if packed else shared_panels * -(-(k1 - k0) // depth)
        run(c, first, second, share_a, K, task, bias, extra, pieces, threads, shared, private, count)


def _operand_of(x, along, layout=NT):
    if isinstance(x, Weight):
        return x.operand(layout == NT)
    if isinstance(x, Matrix):
        return operand_of(x)
    return Operand(x.__array_interface__["data"][0], x.shape[1], along, x.dtype == np.float32, False, 0)


def _gemm_numpy(c, a, b, layout, accumulate, epilogue, bias, extra):
    """The same on a processor whose vectors we have no tile for: the product by NumPy's library, the rest by us."""
    a, b = a.T if layout == TN else a, b.T if layout == NT else b
    if epilogue == NOTHING and not accumulate:
        np.matmul(a, b, out=c)
    else:
        _finish_rows(c, a @ b, accumulate, epilogue, bias, extra)


@kernel(acts2, matrix, boolean, i64, vector, acts2)
def _finish_rows(c, sums, add, epilogue, bias, extra):
    M, N = c.shape
    for i in prange(M):
        space = np.empty(2 * N, np.float32)
        space[:N] = sums[i]
        finish(c, space, N, i, 0, add, epilogue, bias, extra)
