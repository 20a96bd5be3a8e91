"""Description of a model for the decode phases: sizes, arrays and addresses in one block of integers."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from llmpy.kernels.cpu.jit.compile import helper
from llmpy.kernels.cpu.jit.intrinsics import fetch_add, wait_until

COUNTER_BYTES = 128  # of a phase: how many tasks are taken, and a cache line later how many are done

Q, K, V, ATTPROJ, GATE, UP, DOWN = range(7)  # the matrices of a layer; of a GPT-2, GATE is its fc and there is no UP
ADDRESS, KIND, ROW_BYTES, ROWS = range(4)  # what the table says of each

MATRICES = ("x", "logits", "ln1w", "ln1b", "qkvb", "attprojb", "ln2w", "ln2b", "fcb", "fcprojb", "lnfw", "lnfb", "cos",
            "sin", "eps", "normed", "q", "att", "hidden", "scores", "spare")  # fmt: skip
OTHERS = ("table", "forms", "placed")
X, LOGITS, LN1W, LN1B, QKVB, ATTPROJB, LN2W, LN2B, FCB, FCPROJB, LNFW, LNFB, COS, SIN, EPS = range(15)
NORMED, QUERIES, ATT, HIDDEN, SCORES, SPARE = range(15, 21)

Model = namedtuple(
    "Model",
    "S L C NH NKV hs H V T slots room threads interleaved narrow keys values products weighted_sum counters block",
)
"""Sizes, and the address of a block of int64 numbers: the sizes, then address and shape of every matrix, then the
addresses of the others. Handed on by value, so it is small.

Of the call: S sequences, x [S, C], logits [S, V], placed int32 [2, slots], the slot and the position of each.

Of the model: L, C, NH, NKV, hs, H, V; the table of weights, int64 [L + 1, 7, 4], the head alone in its last layer;
vectors [L, n], of the last norm [1, C], of width 0 where a model has none (without ln1b the norms are RMSNorms); cos
and sin [T, hs / 2] of every position, or [0, 0]; eps [1, 1].

Of the cache: the addresses of `keys` and `values` [L, slots, NKV, T, hs], bfloat16 if `narrow`.

To work in: normed [(threads + 1) * slots, C] and forms uint8 [(threads + 1) * slots, 5 * room], first everybody's, then
each thread's own; q and att [slots, NH * hs], hidden [slots, H], scores [threads, T], spare [threads, n]. `room` is the
length of the longest vector, up to a multiple of 64. `products`, `weighted_sum` and `counters` are addresses."""


SIZES = Model._fields[:-1]
AT_MATRICES, AT_OTHERS = len(SIZES), len(SIZES) + 3 * len(MATRICES)


def _make_pointer(element: Any) -> Any:
    @intrinsic
    def pointer(typingctx, address):
        def codegen(context, build, sig, args):
            return build.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(element)(types.int64), codegen

    return pointer


_int64s, _int32s = _make_pointer(types.int64), _make_pointer(types.int32)
_floats, _bytes = _make_pointer(types.float32), _make_pointer(types.uint8)


@helper
def model_at(block):
    """The Model of a block at an address."""
    b = carray(_int64s(block), AT_MATRICES)
    return Model(
        b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12] != 0, b[13] != 0, b[14], b[15],
        b[16], b[17], b[18], block,
    )  # fmt: skip


@helper
def matrix_of(m, which):
    """float32, two axes"""
    entry = carray(_int64s(m.block + 8 * (AT_MATRICES + 3 * which)), 3)
    return carray(_floats(entry[0]), (entry[1], entry[2]))


@helper
def row_of(m, which, row):
    """One row of a matrix"""
    entry = carray(_int64s(m.block + 8 * (AT_MATRICES + 3 * which)), 3)
    return carray(_floats(entry[0] + 4 * row * entry[2]), entry[2])


@helper
def table_of(m, layer):
    """int64 [7, 4]"""
    return carray(_int64s(carray(_int64s(m.block), AT_OTHERS + 1)[AT_OTHERS] + layer * 7 * 4 * 8), (7, 4))


@helper
def forms_of(m, first):
    """uint8 [slots, 5 * room], from this row on"""
    address = carray(_int64s(m.block), AT_OTHERS + 2)[AT_OTHERS + 1]
    return carray(_bytes(address + first * 5 * m.room), (m.slots, 5 * m.room))


@helper
def placed_of(m):
    """int32 [2, slots]"""
    return carray(_int32s(carray(_int64s(m.block), AT_OTHERS + 3)[AT_OTHERS + 2]), (2, m.slots))


# ---- taking part: tasks are counted, phase by phase ----------------------------------------------------------------


@helper
def take(m, phase):
    """The number of the next task of a phase."""
    return fetch_add(np.uintp(m.counters + phase * COUNTER_BYTES))


@helper
def done(m, phase):
    fetch_add(np.uintp(m.counters + phase * COUNTER_BYTES + COUNTER_BYTES // 2))


@helper
def wait(m, phase, tasks):
    """Waits until all tasks of a phase are done and returns the next phase."""
    wait_until(np.uintp(m.counters + phase * COUNTER_BYTES + COUNTER_BYTES // 2), tasks)
    return phase + 1
