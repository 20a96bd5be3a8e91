"""One token for each of a few sequences: the whole model in one call, every thread in it from the first layer to the
last.

At inference a layer lasts some microseconds, less than it takes to send threads to work and wait for them ten times. So
they are sent once. The work is a list of phases, each a number of tasks that do not depend on one another; a thread
takes a task by counting up, and when none is left waits until all are done. Who takes which does not matter to the
result, and nobody needs to be there: one thread alone would do everything.

    for every layer:
        q, k, v of norm(x), q and k turned by their position; k and v go into the cache      a task is some heads
        attention                                                                            heads
        x += attproj                                                                         rows of the weight
        hidden = silu(gate) * up, or gelu(fc), of norm(x)                                    rows
        x += down                                                                            rows
    logits = head of norm(x)                                                                 rows

Before each product its vectors are brought into the form that the weights meet (dots.py): by each thread for itself
where there are few, as tasks of a phase where there are many.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import prange, types

from llmpy.kernels.cpu.compile import Activations, boolean, f32, helper, i32, i64, kernel, matrix, vector
from llmpy.kernels.cpu.dots import BYTES, FLOATS, GROUP, HALVES, KINDS, form_of, make_dots
from llmpy.kernels.cpu.scalars import fetch_add, narrow_like, wait_until, widen
from llmpy.kernels.cpu.vector_math import exp, gelu

Q, K, V, ATTPROJ, GATE, UP, DOWN = range(7)  # the matrices of a layer; of a GPT-2, GATE is its fc and there is no UP
ADDRESS, KIND, ROW_BYTES, ROWS = range(4)  # what the table says of each
FEW = 2  # sequences for which every thread makes the forms itself
TASKS = 8  # to a thread and phase, if there is work for so many
SMALL = 16384  # products that one task should have at least
LOWEST = np.float32(-3e38)
COUNTER_BYTES = 128  # of a phase: how many tasks are taken, and a cache line later how many are done
F32, BF16 = 0, 30

_dots_4x4, _dots_4x1, _dots_1x1 = make_dots(4, 4), make_dots(4, 1), make_dots(1, 1)
_FORMS = np.zeros(max(KINDS) + 1, np.int64)
for _code, _title in KINDS.items():
    _FORMS[_code] = form_of(_title)

Shape = namedtuple("Shape", "S L C NH NKV hs H V room eps interleaved threads slots")
"""Of the model and the call. `room`: numbers of the longest vector, up to a multiple of 64; `slots` of the cache."""
Vectors = namedtuple("Vectors", "ln1w ln1b qkvb attprojb ln2w ln2b fcb fcprojb lnfw lnfb")
"""float32 [L, n], the last two [1, n]; of width 0 where a model has none. Without ln1b the norms are RMSNorms."""
Work = namedtuple("Work", "normed forms q att hidden scores small")
"""float32 normed [threads + 1, S, C], q and att [S, NH * hs], hidden [S, H], scores [threads, T], small [threads, n];
uint8 forms [threads + 1, S, 5 * room]. Number 0 of normed and forms is everybody's, the others a thread's own."""


# ---- taking part ---------------------------------------------------------------------------------------------------


@helper
def _take(counters, phase):
    """The number of the next task of a phase."""
    return fetch_add(counters.ctypes.data + phase * COUNTER_BYTES)


@helper
def _done(counters, phase):
    fetch_add(counters.ctypes.data + phase * COUNTER_BYTES + COUNTER_BYTES // 2)


@helper
def _wait(counters, phase, tasks):
    """Until all tasks of a phase are done -> the next phase."""
    wait_until(counters.ctypes.data + phase * COUNTER_BYTES + COUNTER_BYTES // 2, tasks)
    return phase + 1


@helper
def _tasks_for(count, products, threads):
    """Into how many tasks `count` equal pieces go, that take so many products together."""
    return min(count, TASKS * threads, max(threads, products // SMALL))


# ---- vectors -------------------------------------------------------------------------------------------------------


@helper
def _normalize(y, x, w, b, eps):
    """LayerNorm of a vector, or without b its RMSNorm"""
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
    """What of x [n] is needed beside itself: bfloat16 at byte 0 of its forms, bytes at 2 * room (see dots.py)."""
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
            part = x[start : start + GROUP]
            top = np.float32(0)
            for i in range(GROUP):
                top = max(top, abs(part[i]))
            scale = top / np.float32(127)
            inverse = np.float32(1) / scale if top > 0 else np.float32(0)
            for i in range(GROUP):
                q[start + i] = np.int8(np.int32(np.rint(part[i] * inverse)))
            for i in range(GROUP // 4):
                at = start + 4 * i
                total = np.int32(q[at]) + np.int32(q[at + 1]) + np.int32(q[at + 2]) + np.int32(q[at + 3])
                minus_sums[start // 4 + i] = -total
                scales[start // 4 + i] = scale


@helper
def _ready(x, forms, room, needed, shape, counters, phase):
    """Makes the forms of x [S, n] for all that follow -> the next phase."""
    if shape.S <= FEW:
        for s in range(shape.S):
            _make_forms(x[s], forms[s], room, needed)
        return phase
    if needed & (HALVES | BYTES):
        while True:
            s = _take(counters, phase)
            if s >= shape.S:
                break
            _make_forms(x[s], forms[s], room, needed)
            _done(counters, phase)
        return _wait(counters, phase, shape.S)
    return phase


@helper
def _normalize_all(x, w, b, normed, forms, needed, shape, counters, phase):
    """normed [S, C] = norm(x), and its forms -> the next phase."""
    if shape.S <= FEW:
        for s in range(shape.S):
            _normalize(normed[s], x[s], w, b, shape.eps)
            _make_forms(normed[s], forms[s], shape.room, needed)
        return phase
    while True:
        s = _take(counters, phase)
        if s >= shape.S:
            break
        _normalize(normed[s], x[s], w, b, shape.eps)
        _make_forms(normed[s], forms[s], shape.room, needed)
        _done(counters, phase)
    return _wait(counters, phase, shape.S)


# ---- products ------------------------------------------------------------------------------------------------------


@helper
def _product(y, column, weight, first, last, x, forms, room, add):
    """y[:, column:] = (or += with `add`) the products of rows first..last of a weight with all of x [S, n]."""
    S, n = x.shape
    kind, row_bytes = weight[KIND], weight[ROW_BYTES]
    out = np.empty(16, np.float32)
    form = _FORMS[kind]
    if form == FLOATS:
        vectors, stride = x.ctypes.data, n * 4
    else:
        vectors, stride = forms.ctypes.data + (2 * room if form == BYTES else 0), forms.shape[1]
    whole = first + (last - first) // 4 * 4
    for row in range(first, last):
        if row < whole and (row - first) % 4:
            continue
        rows = 4 if row < whole else 1
        w = weight[ADDRESS] + row * row_bytes
        at = column + row - first
        s = 0
        while s < S:
            count = 1
            if rows == 4 and s + 4 <= S:
                count = 4
                _dots_4x4(kind, w, row_bytes, vectors + s * stride, stride, n, out.ctypes.data)
            elif rows == 4:
                _dots_4x1(kind, w, row_bytes, vectors + s * stride, stride, n, out.ctypes.data)
            else:
                _dots_1x1(kind, w, row_bytes, vectors + s * stride, stride, n, out.ctypes.data)
            for j in range(count):
                target = y[s + j]
                for i in range(rows):
                    value = out[i * count + j]
                    target[at + i] = target[at + i] + value if add else value
            s += count


@helper
def _add_bias(y, column, b, first, last):
    """y[:, column:] += b[first:last], if there is a bias"""
    if b.size:
        for s in range(y.shape[0]):
            for i in range(last - first):
                y[s, column + i] += b[first + i]


# ---- the parts of a layer ------------------------------------------------------------------------------------------


@helper
def _turn(head, cos, sin, interleaved):
    """RoPE of one head, in place."""
    half = cos.size
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        first, second = head[a], head[b]
        head[a] = first * cos[i] - second * sin[i]
        head[b] = first * sin[i] + second * cos[i]


@helper
def _heads(first, last, layer, weights, b, x, forms, shape, work, small, cos, sin, k_cache, v_cache, slots, positions):
    """Heads first..last of q, then k, then v, of every sequence: q into work.q, the others into the cache."""
    NH, NKV, hs, S = shape.NH, shape.NKV, shape.hs, shape.S
    made = small[: S * hs].reshape(S, hs)
    for head in range(first, last):
        which, h = (Q, head) if head < NH else (K, head - NH) if head < NH + NKV else (V, head - NH - NKV)
        _product(made, 0, weights[which], h * hs, (h + 1) * hs, x, forms, shape.room, False)
        _add_bias(made, 0, b, head * hs, (head + 1) * hs)
        for s in range(S):
            at = positions[s]
            if which != V and cos.size:
                _turn(made[s], cos[at], sin[at], shape.interleaved)
            if which == Q:
                for c in range(hs):
                    work.q[s, h * hs + c] = made[s, c]
            else:
                cache = k_cache if which == K else v_cache
                line = cache[layer * shape.slots + slots[s], at, h]
                for c in range(hs):
                    line[c] = narrow_like(line, made[s, c])


@helper
def _attend(y, q, keys, values, h, count, scores, small):
    """y [hs] = attention of q [hs] over the first `count` of keys and values [T, NKV, hs], head h of them."""
    hs, NKV = q.size, keys.shape[1]
    stride = NKV * hs * keys.itemsize
    start, kind = keys.ctypes.data + h * hs * keys.itemsize, F32 if keys.itemsize == 4 else BF16
    query = q.ctypes.data
    if _FORMS[kind] == HALVES:
        halves = small[:hs].view(np.uint16)
        for c in range(hs):
            halves[c] = narrow_like(halves, q[c])
        query = halves.ctypes.data
    for t in range(0, count // 4 * 4, 4):
        _dots_4x1(kind, start + t * stride, stride, query, 0, hs, scores[t:].ctypes.data)
    for t in range(count // 4 * 4, count):
        _dots_1x1(kind, start + t * stride, stride, query, 0, hs, scores[t:].ctypes.data)
    scale, top, total = np.float32(1 / np.sqrt(hs)), LOWEST, np.float32(0)
    for t in range(count):
        top = max(top, scores[t])
    for t in range(count):
        scores[t] = exp((scores[t] - top) * scale)
        total += scores[t]
    y[:] = 0
    for t in range(count):
        share, value = scores[t], values[t, h]
        for c in range(hs):
            y[c] += share * widen(value[c])
    for c in range(hs):
        y[c] /= total


@helper
def _half_block(x, weight, b, source, forms, shape, counters, phase):
    """x += a product of `source`, and its bias -> the next phase."""
    C = shape.C
    tasks = _tasks_for((C + 3) // 4, shape.S * C * source.shape[1], shape.threads)
    while True:
        task = _take(counters, phase)
        if task >= tasks:
            break
        first, last = C * task // tasks // 4 * 4, C * (task + 1) // tasks // 4 * 4 if task + 1 < tasks else C
        _product(x, first, weight, first, last, source, forms, shape.room, True)
        _add_bias(x, first, b, first, last)
        _done(counters, phase)
    return _wait(counters, phase, tasks)


@helper
def _mlp(weights, b, hidden, x, forms, shape, small, counters, phase):
    """hidden = silu(gate) * up, or gelu(fc) where there is no up -> the next phase"""
    H, S = shape.H, shape.S
    gated = weights[UP, ROWS] > 0
    tasks = _tasks_for((H + 3) // 4, 2 * S * H * shape.C, shape.threads)
    while True:
        task = _take(counters, phase)
        if task >= tasks:
            break
        first, last = H * task // tasks // 4 * 4, H * (task + 1) // tasks // 4 * 4 if task + 1 < tasks else H
        _product(hidden, first, weights[GATE], first, last, x, forms, shape.room, False)
        _add_bias(hidden, first, b, first, last)
        n = last - first
        if gated:
            ups = small[: S * n].reshape(S, n)
            _product(ups, 0, weights[UP], first, last, x, forms, shape.room, False)
            for s in range(S):
                row, up = hidden[s, first:last], ups[s]
                for i in range(n):
                    row[i] = row[i] / (np.float32(1) + exp(-row[i])) * up[i]
        else:
            for s in range(S):
                row = hidden[s, first:last]
                for i in range(n):
                    row[i] = gelu(row[i])
        _done(counters, phase)
    return _wait(counters, phase, tasks)


# ---- the model -----------------------------------------------------------------------------------------------------


@helper
def _needed(weights, first, last):
    """The forms that a layer's matrices first..last - 1 meet."""
    needed = 0
    for which in range(first, last):
        if weights[which, ROWS]:
            needed |= _FORMS[weights[which, KIND]]
    return needed


@helper
def _take_part(thread, shape, table, head, v, x, logits, k_cache, v_cache, slots, positions, cos, sin, work, counters):
    """What each thread does, from the first layer to the logits."""
    L, NH, hs, threads, S, vocab = shape.L, shape.NH, shape.hs, shape.threads, shape.S, shape.V
    which = thread + 1 if S <= FEW else 0
    normed, forms, small = work.normed[which], work.forms[which], work.small[thread]
    phase = 0
    for layer in range(L):
        weights = table[layer]
        needed = _needed(weights, Q, ATTPROJ)
        phase = _normalize_all(x, v.ln1w[layer], v.ln1b[layer], normed, forms, needed, shape, counters, phase)
        heads = NH + 2 * shape.NKV
        tasks = _tasks_for(heads, S * heads * hs * shape.C, threads)
        while True:
            task = _take(counters, phase)
            if task >= tasks:
                break
            first, last = heads * task // tasks, heads * (task + 1) // tasks
            _heads(
                first, last, layer, weights, v.qkvb[layer], normed, forms, shape, work, small,
                cos, sin, k_cache, v_cache, slots, positions,
            )  # fmt: skip
            _done(counters, phase)
        phase = _wait(counters, phase, tasks)

        keys = 0
        for s in range(S):
            keys += positions[s] + 1
        tasks = _tasks_for(S * NH, 2 * keys * NH * hs, threads)
        while True:
            task = _take(counters, phase)
            if task >= tasks:
                break
            for each in range(S * NH * task // tasks, S * NH * (task + 1) // tasks):
                s, h = each // NH, each % NH
                row, part = layer * shape.slots + slots[s], slice(h * hs, (h + 1) * hs)
                h //= NH // shape.NKV
                count = positions[s] + 1
                _attend(work.att[s, part], work.q[s, part], k_cache[row], v_cache[row], h, count, work.scores[thread], small)
            _done(counters, phase)
        phase = _wait(counters, phase, tasks)

        phase = _ready(work.att, forms, shape.room, _needed(weights, ATTPROJ, GATE), shape, counters, phase)
        phase = _half_block(x, weights[ATTPROJ], v.attprojb[layer], work.att, forms, shape, counters, phase)
        needed = _needed(weights, GATE, DOWN)
        phase = _normalize_all(x, v.ln2w[layer], v.ln2b[layer], normed, forms, needed, shape, counters, phase)
        phase = _mlp(weights, v.fcb[layer], work.hidden, normed, forms, shape, small, counters, phase)
        phase = _ready(work.hidden, forms, shape.room, _needed(weights, DOWN, DOWN + 1), shape, counters, phase)
        phase = _half_block(x, weights[DOWN], v.fcprojb[layer], work.hidden, forms, shape, counters, phase)

    needed = _FORMS[head[KIND]]
    phase = _normalize_all(x, v.lnfw[0], v.lnfb[0], normed, forms, needed, shape, counters, phase)
    tasks = _tasks_for((vocab + 3) // 4, S * vocab * shape.C, threads)
    while True:
        task = _take(counters, phase)
        if task >= tasks:
            break
        first, last = vocab * task // tasks // 4 * 4, vocab * (task + 1) // tasks // 4 * 4 if task + 1 < tasks else vocab
        _product(logits, first, head, first, last, normed, forms, shape.room, False)
        _done(counters, phase)


_cache = Activations(4)
_shape = types.NamedTuple((*[i64] * 9, f32, boolean, i64, i64), Shape)
_vectors = types.NamedUniTuple(matrix, 10, Vectors)
_bytes = types.uint8[:, :, ::1]
_work = types.NamedTuple((f32[:, :, ::1], _bytes, matrix, matrix, matrix, matrix, matrix), Work)


@kernel(
    _shape, i64[:, :, ::1], i64[::1], _vectors, matrix, matrix, _cache, _cache, i32[::1], i32[::1], matrix, matrix,
    _work, i64[:, ::1],
)  # fmt: skip
def _decode(shape, table, head, v, x, logits, k_cache, v_cache, slots, positions, cos, sin, work, counters):
    """x [S, C] is the embedding of the newest tokens, and is written over; k_cache, v_cache [L * slots, T, NKV, hs]."""
    counters[:] = 0
    if shape.threads == 1:
        _take_part(0, shape, table, head, v, x, logits, k_cache, v_cache, slots, positions, cos, sin, work, counters)
    else:
        for thread in prange(shape.threads):
            _take_part(
                thread, shape, table, head, v, x, logits, k_cache, v_cache, slots, positions, cos, sin, work, counters
            )
