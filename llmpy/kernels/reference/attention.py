"""Causal self-attention with grouped queries: y = softmax(q k^T / sqrt(hs), past and present only) v.

Backward needs only the log-sum-exp of each row of scores, not the T x T matrix (Dao et al. 2022, FlashAttention). NH
query heads share NKV key/value heads in runs of NH / NKV (Ainslie et al. 2023); NH = NKV is ordinary multi-head
attention.
"""

import numpy as np

from llmpy.kernels.reference.rope import rope_backward, rope_forward


def attention_forward(y, lse, q, k, v, rope=None):
    """q [B, Tq, NH, hs], k and v [B, T, NKV, hs] -> y [B, Tq, NH, hs], and lse [B, NH, Tq] for the backward pass.

    The queries are those of the last Tq of T tokens. With rope = (cos, sin, interleaved), q and k are rotated in place
    first, and Tq = T.
    """
    if rope is not None:
        rope_forward(q, *rope)
        rope_forward(k, *rope)
    NH = q.shape[2]
    scores = _scores(_by_head(q, NH), _by_head(k, NH))
    top = scores.max(-1)
    lse[:] = top + np.log(np.exp(scores - top[..., None]).sum(-1))
    y[:] = (np.exp(scores - lse[..., None]) @ _by_head(v, NH)).transpose(0, 2, 1, 3)


def attention_backward(dq, dk, dv, dy, q, k, v, y, lse, rope=None):
    """dy [B, T, NH, hs] -> dq [B, T, NH, hs], dk and dv [B, T, NKV, hs]; they may be q, k and v themselves.

    q and k are as `attention_forward` left them, rotated where it was called with a rope.
    """
    B, T, NH, hs = q.shape
    NKV = k.shape[2]
    scale = 1 / np.sqrt(hs).astype(q.dtype)
    q_, k_, v_, dy_ = _by_head(q, NH), _by_head(k, NH), _by_head(v, NH), _by_head(dy, NH)
    att = np.exp(_scores(q_, k_) - lse[..., None])
    mean = (dy * y).sum(-1).transpose(0, 2, 1)[..., None]  # [B, NH, T, 1]: the sum over keys of att * datt
    dscores = att * (dy_ @ v_.transpose(0, 1, 3, 2) - mean) * scale

    def back(x):  # [B, NH, T, hs] -> [B, T, NKV, hs], summed over the query heads that share one
        return x.reshape(B, NKV, NH // NKV, T, hs).sum(2).transpose(0, 2, 1, 3)

    new_dv, new_dk = back(att.transpose(0, 1, 3, 2) @ dy_), back(dscores.transpose(0, 1, 3, 2) @ q_)
    dq[:] = (dscores @ k_).transpose(0, 2, 1, 3)
    dk[:], dv[:] = new_dk, new_dv
    if rope is not None:
        rope_backward(dq, *rope)
        rope_backward(dk, *rope)


def attention_decode(y, q, k_cache, v_cache, positions, slots=None):
    """q [S, NH, hs] of the newest tokens, KV caches [slots, T, NKV, hs] -> y [S, NH, hs].

    Sequence s attends to the keys 0..positions[s] in the slot slots[s]; positions, slots int32 [S]; slots None: 0..S-1.
    """
    S, NH, hs = q.shape
    slots = range(S) if slots is None else slots
    group = NH // k_cache.shape[2]
    for s in range(S):
        seen = slots[s], slice(positions[s] + 1)
        keys, values = (np.repeat(cache[seen], group, axis=1) for cache in (k_cache, v_cache))  # [t, NH, hs]
        scores = np.einsum("hd,thd->ht", q[s], keys) / np.sqrt(hs).astype(q.dtype)
        att = np.exp(scores - scores.max(-1, keepdims=True))
        y[s] = np.einsum("ht,thd->hd", att / att.sum(-1, keepdims=True), values)


def _by_head(x, heads):
    """[B, T, n, hs] -> [B, heads, T, hs]; each of the n heads is repeated for the query heads that share it."""
    return np.repeat(x, heads // x.shape[2], axis=2).transpose(0, 2, 1, 3)


def _scores(q, k):
    """q [B, NH, Tq, hs], k [B, NH, T, hs] -> q k^T / sqrt(hs) [B, NH, Tq, T], minus infinity where a key is later."""
    (Tq, hs), T = q.shape[2:], k.shape[2]
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(hs).astype(q.dtype)
    return np.where(np.tri(Tq, T, T - Tq, dtype=bool), scores, -np.inf)
