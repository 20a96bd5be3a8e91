"""The phases of decoding (decode.py): each a number of tasks that threads take one by one.

Everything here gets `m`, a `Model`: sizes, arrays and addresses. A phase is told its number, waits for the end of all
its tasks, and returns the number of the next.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from llmpy.kernels.cpu.decode.gemv import BYTES, FLOATS, HALVES, KINDS, call_entry, form_of
from llmpy.kernels.cpu.decode.gemv_float import AHEAD
from llmpy.kernels.cpu.decode.gemv_int8 import GROUP
from llmpy.kernels.cpu.decode.model_block import (
    ADDRESS,
    ATT,
    ATTPROJ,
    COS,
    DOWN,
    EPS,
    FCB,
    GATE,
    HIDDEN,
    KIND,
    LOGITS,
    QKVB,
    QUERIES,
    ROW_BYTES,
    ROWS,
    SIN,
    UP,
    K,
    Q,
    V,
    X,
    done,
    matrix_of,
    placed_of,
    row_of,
    take,
    wait,
)
from llmpy.kernels.cpu.jit.compile import helper
from llmpy.kernels.cpu.jit.intrinsics import narrow_like, prefetch, store_bfloat16, store_float
from llmpy.kernels.cpu.jit.vector_math import exp, gelu

FEW = 2  # sequences for which every thread makes norms and forms itself
TASKS = 8  # to a thread and phase, if there is work for so many
SMALL = 16384  # products that one task should have at least
BUNDLE = 8  # rows of a weight that are multiplied together
F32, BF16 = 0, 30
LOWEST = np.float32(-3e38)

_FORMS = np.zeros(max(KINDS) + 1, np.int64)
for _code, _title in KINDS.items():
    _FORMS[_code] = form_of(_title)

# ---- sharing out ---------------------------------------------------------------------------------------------------


@helper
def _tasks_for(m, pieces, products):
    """Returns the number of tasks for so many pieces of work, which take `products` multiplications together."""
    return min(pieces, TASKS * m.threads, max(m.threads, products // SMALL))


@helper
def _cut(rows, task, tasks):
    """Returns the first row of a task's share: a multiple of the bundle size, or the end."""
    return rows if task == tasks else rows * task // tasks // BUNDLE * BUNDLE


@helper
def _ask_for(m, weight, width):
    """Prefetches the first rows of the next GEMV's first tasks (`width` columns).

    A thread does this before it waits for the others: otherwise all threads would wait for memory as the GEMV starts.
    """
    rows, row_bytes = weight[ROWS], weight[ROW_BYTES]
    tasks = _tasks_for(m, (rows + BUNDLE - 1) // BUNDLE, m.S * rows * width)
    for task in range(min(tasks, m.threads)):
        first, last = _cut(rows, task, tasks), _cut(rows, task + 1, tasks)
        prefetch(np.uintp(weight[ADDRESS] + first * row_bytes), AHEAD, 4, (last - first) // 4 * row_bytes)


# ---- vectors -------------------------------------------------------------------------------------------------------


@helper
def _normalize(y, x, w, b, eps):
    """LayerNorm of a vector, or without b its RMSNorm."""
    C = x.size
    mean = np.float32(0)
    if b.size:
        for c in range(C):
            mean += x[c]
        mean /= np.float32(C)
    squares = np.float32(0)
    for c in range(C):
        squares += (x[c] - mean) * (x[c] - mean)
    rstd = np.float32(1) / np.sqrt(squares / np.float32(C) + eps)
    for c in range(C):
        y[c] = (x[c] - mean) * rstd * w[c]
    if b.size:
        for c in range(C):
            y[c] += b[c]


@helper
def _make_forms(x, forms, room, needed):
    """Converts x [n] to the forms that GEMVs read: bfloat16 at byte 0, int8 blocks at 2 * room (see gemv.py)."""
    n = x.size
    if needed & HALVES:
        halves = forms[: 2 * n].view(np.uint16)
        for i in range(n):
            halves[i] = narrow_like(halves, x[i])
    if needed & BYTES:
        padded = (n + 63) // 64 * 64
        q = forms[2 * room : 2 * room + n].view(np.int8)
        minus_sums = forms[2 * room + padded : 2 * room + padded + n].view(np.int32)
        scales = forms[2 * room + 2 * padded : 2 * room + 2 * padded + n].view(np.float32)
        for start in range(0, n, GROUP):
            part, bytes_ = x[start : start + GROUP], q[start : start + GROUP]
            top = np.float32(0)
            for i in range(GROUP):
                top = max(top, abs(part[i]))
            scale = top / np.float32(127)
            inverse = np.float32(1) / scale if top > 0 else np.float32(0)
            for i in range(GROUP):
                bytes_[i] = np.int8(np.int32(np.rint(part[i] * inverse)))
            for i in range(GROUP // 4):
                at = 4 * i
                total = np.int32(bytes_[at]) + np.int32(bytes_[at + 1])
                total += np.int32(bytes_[at + 2]) + np.int32(bytes_[at + 3])
                minus_sums[start // 4 + i] = -total
                scales[start // 4 + i] = scale


@helper
def ready(m, phase, x, forms, needed):
    """The forms of x [S, n] for all that follow."""
    if m.S <= FEW:
        for s in range(m.S):
            _make_forms(x[s], forms[s], m.room, needed)
        return phase
    while needed & (HALVES | BYTES):
        s = take(m, phase)
        if s >= m.S:
            return wait(m, phase, m.S)
        _make_forms(x[s], forms[s], m.room, needed)
        done(m, phase)
    return phase


@helper
def normalize(m, phase, w, b, normed, forms, needed):
    """normed [S, C] = norm(m.x), and its forms."""
    if m.S <= FEW:
        for s in range(m.S):
            _normalize(normed[s], row_of(m, X, s), w, b, row_of(m, EPS, 0)[0])
            _make_forms(normed[s], forms[s], m.room, needed)
        return phase
    while True:
        s = take(m, phase)
        if s >= m.S:
            return wait(m, phase, m.S)
        _normalize(normed[s], row_of(m, X, s), w, b, row_of(m, EPS, 0)[0])
        _make_forms(normed[s], forms[s], m.room, needed)
        done(m, phase)


@helper
def forms_for(weights, first, last):
    """The forms that a layer's matrices first..last - 1 meet."""
    needed = 0
    for which in range(first, last):
        if weights[which, ROWS]:
            needed |= _FORMS[weights[which, KIND]]
    return needed


# ---- products ------------------------------------------------------------------------------------------------------


@helper
def _product(m, y, column, weight, first, last, x, forms, add):
    """y[:S, column:] = (or += with `add`) the products of rows first..last - 1 of a weight with x [:S, n]."""
    n = x.shape[1]
    kind, row_bytes = weight[KIND], weight[ROW_BYTES]
    if _FORMS[kind] == FLOATS:
        vectors, stride = np.int64(x.ctypes.data), n * 4
    else:
        vectors = np.int64(forms.ctypes.data) + (2 * m.room if _FORMS[kind] == BYTES else 0)
        stride = forms.shape[1]
    w, out = weight[ADDRESS] + first * row_bytes, np.int64(y.ctypes.data) + column * 4
    call_entry(
        m.products, (kind, w, row_bytes, last - first, vectors, stride, m.S, n, out, y.shape[1] * 4, np.int64(add))
    )


@helper
def _add_bias(m, y, column, b, first, last):
    """y[:S, column:] += b[first:last], if there is a bias."""
    if b.size:
        for s in range(m.S):
            for i in range(last - first):
                y[s, column + i] += b[first + i]


# ---- attention -----------------------------------------------------------------------------------------------------


@helper
def _place(m, cache, layer, slot, t, h):
    """The address of a head of the keys or values [L, slots, NKV, T, hs]."""
    return cache + (((layer * m.slots + slot) * m.NKV + h) * m.T + t) * m.hs * (2 if m.narrow else 4)


@helper
def _turn(head, cos, sin, interleaved):
    """RoPE of one head, in place."""
    half = cos.size
    if interleaved:
        for i in range(half):
            first, second = head[2 * i], head[2 * i + 1]
            head[2 * i] = first * cos[i] - second * sin[i]
            head[2 * i + 1] = first * sin[i] + second * cos[i]
    else:
        for i in range(half):
            first, second = head[i], head[i + half]
            head[i] = first * cos[i] - second * sin[i]
            head[i + half] = first * sin[i] + second * cos[i]


@helper
def _make_head(m, head, layer, weights, x, forms, spare):
    """One head of q, or behind those of k, or of v, of every sequence: into m.q, or into the cache."""
    NH, NKV, hs = m.NH, m.NKV, m.hs
    made = spare[: m.S * hs].reshape(m.S, hs)
    which, h = (Q, head) if head < NH else (K, head - NH) if head < NH + NKV else (V, head - NH - NKV)
    _product(m, made, 0, weights[which], h * hs, (h + 1) * hs, x, forms, False)
    _add_bias(m, made, 0, row_of(m, QKVB, layer), head * hs, (head + 1) * hs)
    placed = placed_of(m)
    for s in range(m.S):
        row, slot, at = made[s], placed[0, s], placed[1, s]
        cos = row_of(m, COS, at)
        if which != V and cos.size:
            _turn(row, cos, row_of(m, SIN, at), m.interleaved)
        if which == Q:
            row_of(m, QUERIES, s)[h * hs : (h + 1) * hs] = row
        else:
            place = _place(m, m.keys if which == K else m.values, layer, slot, at, h)
            for c in range(hs):
                if m.narrow:
                    store_bfloat16(np.uintp(place + 2 * c), row[c])
                else:
                    store_float(np.uintp(place + 4 * c), row[c])


@helper
def make_heads(m, phase, layer, weights, x, forms, spare):
    """q, k and v of every sequence. A task is some heads."""
    NH, hs, heads = m.NH, m.hs, m.NH + 2 * m.NKV
    tasks = _tasks_for(m, heads, m.S * heads * hs * m.C)
    while True:
        task = take(m, phase)
        if task >= tasks:
            _ask_for(m, weights[ATTPROJ], NH * hs)
            return wait(m, phase, tasks)
        for head in range(heads * task // tasks, heads * (task + 1) // tasks):
            _make_head(m, head, layer, weights, x, forms, spare)
        done(m, phase)


@njit(fastmath={"nnan", "nsz", "reassoc"}, error_model="numpy")
def _largest(x):
    """Returns the largest element; NaN may give any result, so the search is vectorized."""
    top = LOWEST
    for i in range(x.size):
        top = max(top, x[i])
    return top


@helper
def _attend(m, y, q, keys, values, count, scores, spare):
    """y [hs] = attention of q [hs] over the first `count` keys and values of a head, which lie at these addresses."""
    hs = q.size
    stride, kind = hs * (2 if m.narrow else 4), BF16 if m.narrow else F32
    query = np.int64(q.ctypes.data)
    if _FORMS[kind] == HALVES:
        halves = spare[:hs].view(np.uint16)
        for c in range(hs):
            halves[c] = narrow_like(halves, q[c])
        query = np.int64(halves.ctypes.data)
    out = np.int64(scores.ctypes.data)
    call_entry(m.products, (kind, keys, stride, count, query, 0, 1, hs, out, 0, 0))
    scale, top, total = np.float32(1 / np.sqrt(hs)), _largest(scores[:count]), np.float32(0)
    for t in range(count):
        scores[t] = exp((scores[t] - top) * scale)
        total += scores[t]
    call_entry(m.weighted_sum, (kind, values, stride, out, count, np.int64(y.ctypes.data), hs))
    for c in range(hs):
        y[c] /= total


@helper
def attend(m, phase, layer, scores, spare):
    """m.att = attention of m.q, over what is in the cache by now. A task is some heads of some sequences."""
    S, NH, hs, placed = m.S, m.NH, m.hs, placed_of(m)
    keys = 0
    for s in range(S):
        keys += placed[1, s] + 1
    tasks = _tasks_for(m, S * NH, 2 * keys * NH * hs)
    while True:
        task = take(m, phase)
        if task >= tasks:
            return wait(m, phase, tasks)
        for each in range(S * NH * task // tasks, S * NH * (task + 1) // tasks):
            s, h = each // NH, each % NH
            slot, count, shared = placed[0, s], placed[1, s] + 1, h // (NH // m.NKV)
            k, v = _place(m, m.keys, layer, slot, 0, shared), _place(m, m.values, layer, slot, 0, shared)
            part = slice(h * hs, (h + 1) * hs)
            _attend(m, row_of(m, ATT, s)[part], row_of(m, QUERIES, s)[part], k, v, count, scores, spare)
        done(m, phase)


# ---- what follows --------------------------------------------------------------------------------------------------


@helper
def add_product(m, phase, weight, b, x, forms, following):
    """m.x += a product with x, and its bias. A task is some rows of the weight. `following` is the next weight."""
    C = m.C
    tasks = _tasks_for(m, (C + BUNDLE - 1) // BUNDLE, m.S * C * x.shape[1])
    while True:
        task = take(m, phase)
        if task >= tasks:
            _ask_for(m, following, C)
            return wait(m, phase, tasks)
        first, last = _cut(C, task, tasks), _cut(C, task + 1, tasks)
        out = matrix_of(m, X)
        _product(m, out, first, weight, first, last, x, forms, True)
        _add_bias(m, out, first, b, first, last)
        done(m, phase)


@helper
def make_hidden(m, phase, layer, weights, x, forms, spare):
    """m.hidden = silu(gate) * up of x, or gelu(fc) where there is no up. A task is some rows."""
    H, S = m.H, m.S
    gated = weights[UP, ROWS] > 0
    tasks = _tasks_for(m, (H + BUNDLE - 1) // BUNDLE, 2 * S * H * m.C)
    while True:
        task = take(m, phase)
        if task >= tasks:
            _ask_for(m, weights[DOWN], H)
            return wait(m, phase, tasks)
        first, last = _cut(H, task, tasks), _cut(H, task + 1, tasks)
        n = last - first
        hidden = matrix_of(m, HIDDEN)
        _product(m, hidden, first, weights[GATE], first, last, x, forms, False)
        _add_bias(m, hidden, first, row_of(m, FCB, layer), first, last)
        ups = spare[: S * n].reshape(S, n)
        if gated:
            _product(m, ups, 0, weights[UP], first, last, x, forms, False)
        for s in range(S):
            row, up = hidden[s, first:last], ups[s]
            if gated:
                for i in range(n):
                    row[i] = row[i] / (np.float32(1) + exp(-row[i])) * up[i]
            else:
                for i in range(n):
                    row[i] = gelu(row[i])
        done(m, phase)


@helper
def make_logits(m, phase, weight, x, forms):
    """m.logits [S, V]. A task is some rows of the head."""
    tasks = _tasks_for(m, (m.V + BUNDLE - 1) // BUNDLE, m.S * m.V * m.C)
    while True:
        task = take(m, phase)
        if task >= tasks:
            return wait(m, phase, tasks)
        first, last = _cut(m.V, task, tasks), _cut(m.V, task + 1, tasks)
        _product(m, matrix_of(m, LOGITS), first, weight, first, last, x, forms, False)
        done(m, phase)
