"""The language-model head and cross-entropy together, one chunk of rows at a time: [N, V] logits never exist at once.

loss = logsumexp(x w^T) - (x w^T)[target]. The gradient of the logits is softmax - onehot(target), so the gradients of x
and w can be computed while the chunk of logits is in memory (as Liger-Kernel's fused linear cross-entropy does).
"""

import numpy as np

from llmpy.kernels.reference.linear import linear_backward, linear_forward


def classifier_forward(losses, x, w, targets, logits):
    """x [N, C], w [V, C], targets int32 [N] (-1: none) -> losses [N]; logits [R, V] is scratch."""
    for rows in _chunks(len(x), len(logits)):
        chunk = logits[: rows.stop - rows.start]
        linear_forward(chunk, x[rows], w)
        losses[rows] = _cross_entropy(chunk, targets[rows])


def classifier_backward(losses, dx, dw, x, w, targets, scale, logits, accumulate=True):
    """Computes the losses, and the gradients of scale * losses.sum(): overwrites dx [N, C], accumulates dw [V, C].

    With accumulate=False, dw is overwritten.
    """
    for rows in _chunks(len(x), len(logits)):
        chunk, target = logits[: rows.stop - rows.start], targets[rows]
        linear_forward(chunk, x[rows], w)
        losses[rows] = _cross_entropy(chunk, target)
        chunk -= chunk.max(-1, keepdims=True)
        np.exp(chunk, out=chunk)
        chunk *= scale / chunk.sum(-1, keepdims=True)
        used = np.flatnonzero(target >= 0)
        chunk[used, target[used]] -= scale
        chunk[target < 0] = 0
        linear_backward(dx[rows], dw, None, chunk, x[rows], w, accumulate=accumulate or rows.start > 0)


def _chunks(rows, size):
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _cross_entropy(logits, targets):
    """logits [N, V], targets [N] -> losses [N], 0 where the target is -1."""
    top = logits.max(-1)
    lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    return np.where(targets >= 0, lse - logits[np.arange(len(logits)), targets], 0)
