"""The language-model head and cross-entropy together, one chunk of rows at a time: [N, V] logits never exist at once.

A GPU needs more rows at a time than a CPU, and rows that are aligned for its widest loads: plan the scratch as
[LOGITS_ROWS, padded_width(V)] and pass its columns [:, :V]; the columns to the right of V are scratch, too. The scratch
may be bfloat16 if the activations are: half of the memory, and half of the time to read the logits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmpy.kernels.cuda.gemm.autotune import multiply
from llmpy.kernels.cuda.gemm.problem import NN, NT, TN, row_stride
from llmpy.kernels.cuda.linear import operand
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.device import INTERPRETED
from llmpy.kernels.cuda.runtime.launch import launch, power_of_2

LOGITS_ROWS = 4096  # rows of logits that exist at a time: tiles enough to fill a card many times over
LOWEST = tl.constexpr(float("-inf"))


def padded_width(V: int) -> int:
    """Columns of the scratch for V logits: each row begins at a multiple of 128 bytes, for any dtype."""
    return -(-V // 64) * 64


def classifier_forward(losses: DeviceArray, x: DeviceArray, w, targets: DeviceArray, logits: DeviceArray) -> None:
    """x [N, C], w [V, C], targets int32 [N] (-1: none) -> losses [N]; logits [R, V] is scratch."""
    for rows in _chunks(len(x), len(logits)):
        chunk = _whole_rows(logits)[: rows.stop - rows.start]
        multiply(chunk, x[rows], operand(w), NT)
        _cross_entropy(losses[rows], chunk, chunk, targets[rows], w.shape[0], 0.0, False)


def classifier_backward(
    losses: DeviceArray, dx: DeviceArray, dw: DeviceArray, x: DeviceArray, w, targets: DeviceArray, scale: float,
    logits: DeviceArray, accumulate: bool = True,
) -> None:  # fmt: skip
    """Computes the losses, and the gradients of scale * losses.sum(): overwrites dx [N, C], accumulates dw [V, C].

    With accumulate=False, dw is overwritten.
    """
    for rows in _chunks(len(x), len(logits)):
        chunk = _whole_rows(logits)[: rows.stop - rows.start]
        gradients = _seen_as(chunk, x.dtype)
        multiply(chunk, x[rows], operand(w), NT)
        _cross_entropy(losses[rows], chunk, gradients, targets[rows], w.shape[0], scale, True)
        multiply(dw, gradients, x[rows], TN, accumulate or rows.start > 0)
        multiply(dx[rows], gradients, operand(w), NN)


def configuration(V: int) -> dict[str, int]:
    """Columns that a program has at once of its row, and warps."""
    if INTERPRETED:
        return {"block": power_of_2(V), "num_warps": 4}
    return {"block": min(8192, max(128, power_of_2(V))), "num_warps": 8 if V > 2048 else 4}


@triton.jit
def cross_entropy(losses, logits, gradients, targets, V, width, stride, gradient_stride, scale,
                  backward: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """A row: its loss; with `backward`, its gradient times `scale` in `gradients`, zeros from V to `width`.

    The gradients may lie where the logits do, in narrower numbers: no block of them reaches behind the one of logits
    that it was made of.
    """
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride
    gradients += row.to(tl.int64) * gradient_stride
    target = tl.load(targets + row)
    column = tl.arange(0, block)
    top, total = LOWEST, tl.zeros([block], tl.float32)
    for start in range(0, V, block):  # sums of exponentials by the largest so far, which may grow
        x = tl.load(logits + start + column, mask=start + column < V, other=LOWEST).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    lse = top + tl.log(tl.sum(total, 0))
    counts = target >= 0
    at_target = tl.load(logits + target, mask=counts, other=0.0).to(tl.float32)
    tl.store(losses + row, tl.where(counts, lse - at_target, 0.0))
    if backward:
        factor = tl.where(counts, scale, 0.0)
        for start in range(0, width, block):
            at = start + column
            x = tl.load(logits + at, mask=at < V, other=LOWEST).to(tl.float32)
            gradient = tl.where(at < V, tl.exp(x - lse) * factor, 0.0)
            gradient = tl.where((at == target) & counts, gradient - scale, gradient)
            tl.debug_barrier()  # all of the block is read before any of it is written over
            tl.store(gradients + at, gradient.to(gradients.dtype.element_ty), mask=at < width)


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _whole_rows(logits: DeviceArray) -> DeviceArray:
    """The logits with their padding columns."""
    rows = logits.shape[0]
    return DeviceArray(logits.address, (rows, row_stride(logits)), logits.dtype, logits.owner)


def _seen_as(chunk: DeviceArray, dtype) -> DeviceArray:
    """The memory of a chunk as a dtype that is not wider; each row begins where it began."""
    if dtype.itemsize > chunk.dtype.itemsize:
        raise ValueError(f"logits of {chunk.dtype} have no room for gradients of {dtype}")
    step = chunk.strides[0] * chunk.dtype.itemsize // dtype.itemsize
    return DeviceArray(chunk.address, chunk.shape, dtype, chunk.owner, (step, 1))


def _cross_entropy(losses, chunk, gradients, targets, V, scale, backward):
    """Launches cross_entropy over the first V columns; with `backward`, all columns are overwritten."""
    launch(
        cross_entropy, (len(chunk),), losses, chunk, gradients, targets, V, chunk.shape[1], chunk.strides[0],
        gradients.strides[0], scale, backward=backward, **configuration(V),
    )  # fmt: skip
