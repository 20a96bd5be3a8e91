"""One token for each of a few sequences: the whole model in one call, every thread in it from the first layer to the
last.

At inference a layer lasts some microseconds, less than it takes to send threads to work and wait for them ten times. So
they are sent once. The work is a list of phases, each a number of tasks that do not depend on one another; a thread
takes a task by counting up, and when none is left waits until all are done. Who takes which does not matter to the
result, and nobody needs to be there: one thread alone would do everything.

    for every layer:
        q, k, v of norm(x), q and k turned by their position; k and v go into the cache
        attention
        x += attproj
        hidden = silu(gate) * up, or gelu(fc), of norm(x)
        x += down
    logits = head of norm(x)

Before each product its vectors are brought into the form that the weights meet (dots.py): by each thread for itself
where there are few, as tasks of a phase where there are many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numba import get_num_threads, prange

from llmpy.kernels.cpu.decode.gemv import call_entry, products_entry, weighted_sum_entry
from llmpy.kernels.cpu.decode.model_block import (
    AT_MATRICES,
    ATT,
    ATTPROJ,
    ATTPROJB,
    COUNTER_BYTES,
    DOWN,
    FCPROJB,
    GATE,
    HIDDEN,
    LN1B,
    LN1W,
    LN2B,
    LN2W,
    LNFB,
    LNFW,
    LOGITS,
    MATRICES,
    NORMED,
    OTHERS,
    SCORES,
    SIZES,
    SPARE,
    Q,
    forms_of,
    matrix_of,
    model_at,
    row_of,
    table_of,
)
from llmpy.kernels.cpu.decode.phases import (
    FEW,
    add_product,
    attend,
    forms_for,
    make_heads,
    make_hidden,
    make_logits,
    normalize,
    ready,
)
from llmpy.kernels.cpu.jit.compile import entry, i64, kernel
from llmpy.kernels.defaults import embed_rows
from llmpy.quant.matrix import Matrix
from llmpy.utils.memory import MemoryPlan

if TYPE_CHECKING:
    from llmpy.models.config import ModelConfig
    from llmpy.models.inference_weights import StoredWeights

ALONE = 2_000_000  # products of a step: up to here one thread is done before a second has heard of it
LAYERNORM_EPS = 1e-5
_S, _THREADS, _LOGITS = SIZES.index("S"), SIZES.index("threads"), AT_MATRICES + 3 * LOGITS  # in a block


class Decode:
    """Decodes with the weights of a model, over a cache that others may write, too.

    keys and values [L, slots, T, NKV, hs], float32 or bfloat16, in memory with a head's T rows together; cos and sin
    [T, hs / 2] of every position, for a Llama.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: StoredWeights,
        keys: np.ndarray,
        values: np.ndarray,
        cos: np.ndarray | None = None,
        sin: np.ndarray | None = None,
    ) -> None:
        self.config = config
        assert all(cache.swapaxes(2, 3).flags.c_contiguous for cache in (keys, values))
        L, slots, T, NKV, hs = keys.shape
        C, NH, V, threads = config.channels, config.heads, config.vocab_size, get_num_threads()
        H = weights.layers[0].gate.shape[0] if cos is not None else 4 * C
        room = -(-max(C, H, NH * hs) // 64) * 64
        self.memory = plan = MemoryPlan()
        for name, rows, columns in (
            ("x", slots, C),
            ("normed", (threads + 1) * slots, C),
            ("q", slots, NH * hs),
            ("att", slots, NH * hs),
            ("hidden", slots, H),
            ("scores", threads, T),
            ("spare", threads, slots * max(H, hs)),
        ):
            plan.add("decoding", name, rows, columns)
        plan.add("decoding", "forms", (threads + 1) * slots, 5 * room, dtype=np.uint8)
        self._arrays = arrays = plan.take()
        arrays |= _vectors_of(weights)
        no_angles = np.zeros((0, 0), np.float32)
        arrays |= {"cos": no_angles if cos is None else cos, "sin": no_angles if sin is None else sin}
        arrays["eps"] = np.full((1, 1), getattr(config, "norm_eps", LAYERNORM_EPS), np.float32)
        arrays["logits"] = np.zeros((0, V), np.float32)  # in its place comes that of each call
        arrays["placed"] = np.zeros((2, slots), np.int32)
        layers = [_matrices_of(layer, NH * hs) for layer in weights.layers]
        head = weights.head[:V]
        table: list[list[Matrix | None]] = [*layers, [head] * 7]
        arrays["table"] = np.array([[_table_entry(matrix) for matrix in row] for row in table], np.int64)
        self._counters = np.zeros((9 * L + 3, COUNTER_BYTES // 8), np.int64)
        self._kept = weights, keys, values  # what the addresses below lead to
        matrices = [matrix for row in layers for matrix in row if matrix is not None] + [head]
        self._products = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices)
        self._threads = threads
        interleaved = getattr(config, "rope_interleaved", False)
        narrow = keys.dtype == ml_dtypes.bfloat16
        for each in (products_entry, weighted_sum_entry, take_part):
            each.compile("float32")
        calls = products_entry.address, weighted_sum_entry.address
        sizes = (0, L, C, NH, NKV, hs, H, V, T, slots, room, 0, interleaved, narrow)
        self._block = np.array(
            [*sizes, _address(keys), _address(values), *calls, _address(self._counters)]
            + [number for name in MATRICES for number in (_address(arrays[name]), *arrays[name].shape)]
            + [_address(arrays[name]) for name in OTHERS],
            np.int64,
        )

    def renew(self) -> None:
        """The norms and biases as they are now; the matrices are read where they lie."""
        for name, vectors in _vectors_of(self._kept[0]).items():
            self._arrays[name][...] = vectors

    def __call__(self, logits: np.ndarray, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> None:
        """Computes logits [S, V] after the newest tokens of S slots, and writes those tokens to the KV cache.

        tokens, slots and positions int32 [S]
        """
        S = len(tokens)
        assert logits.shape == (S, self.config.vocab_size)
        assert logits.flags.c_contiguous
        threads = 1 if S * self._products <= ALONE else min(self._threads, get_num_threads())
        embed_rows(self._arrays["x"][:S], self._kept[0], tokens, positions)
        self._arrays["placed"][0, :S], self._arrays["placed"][1, :S] = slots, positions
        self._block[_S], self._block[_THREADS], self._block[_LOGITS] = S, threads, _address(logits)
        self._counters[:] = 0
        if threads == 1:  # called as it is: where other programs have the cores, even to say "one thread" takes long
            take_part.call(_address(self._block), 0)
        else:
            _all_take_part(take_part.address, _address(self._block), threads)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _matrices_of(layer: Any, width: int) -> list[Matrix | None]:
    """Matrices of a layer, in the order of the table."""
    if hasattr(layer, "qkv"):
        heads = [layer.qkv[start : start + width] for start in (0, width, 2 * width)]
        return [*heads, layer.attproj, layer.fc, None, layer.fcproj]
    return [layer.q, layer.k, layer.v, layer.attproj, layer.gate, layer.up, layer.down]


def _table_entry(matrix: Matrix | None) -> tuple[int, int, int, int]:
    return (0, 0, 0, 0) if matrix is None else (matrix.address, matrix.kind.code, matrix.row_bytes, matrix.shape[0])


def _vectors_of(weights: StoredWeights) -> dict[str, np.ndarray]:
    """Norms and biases, those of all layers in one array; of width 0 where there are none."""

    def stacked(*names: str) -> np.ndarray:
        rows = []
        for layer in weights.layers:
            parts = [part for name in names if (part := getattr(layer, name, None)) is not None]
            rows.append(np.concatenate([np.zeros(0, np.float32), *parts]))
        return np.stack(rows)

    found = {name: stacked(name) for name in ("ln1w", "ln1b", "attprojb", "ln2w", "ln2b", "fcb", "fcprojb")}
    found["qkvb"] = stacked("qkvb", "qb", "kb", "vb")
    last = {name: getattr(weights, name, np.zeros(0, np.float32)) for name in ("lnfw", "lnfb")}
    return found | {name: np.array(vector[None]) for name, vector in last.items()}


# ---- compiled ------------------------------------------------------------------------------------------------------


@entry(2)
def take_part(block, thread):
    """Runs one thread's share of a decode step, from the first layer to the logits."""
    m = model_at(block)
    first = (thread + 1) * m.slots if m.S <= FEW else 0
    normed, forms = matrix_of(m, NORMED)[first:], forms_of(m, first)
    att, hidden = matrix_of(m, ATT), matrix_of(m, HIDDEN)
    scores, spare = row_of(m, SCORES, thread), row_of(m, SPARE, thread)
    phase = 0
    for layer in range(m.L):
        weights = table_of(m, layer)
        w, b = row_of(m, LN1W, layer), row_of(m, LN1B, layer)
        phase = normalize(m, phase, w, b, normed, forms, forms_for(weights, Q, ATTPROJ))
        phase = make_heads(m, phase, layer, weights, normed, forms, spare)
        phase = attend(m, phase, layer, scores, spare)
        phase = ready(m, phase, att, forms, forms_for(weights, ATTPROJ, GATE))
        phase = add_product(m, phase, weights[ATTPROJ], row_of(m, ATTPROJB, layer), att, forms, weights[GATE])
        w, b = row_of(m, LN2W, layer), row_of(m, LN2B, layer)
        phase = normalize(m, phase, w, b, normed, forms, forms_for(weights, GATE, DOWN))
        phase = make_hidden(m, phase, layer, weights, normed, forms, spare)
        phase = ready(m, phase, hidden, forms, forms_for(weights, DOWN, DOWN + 1))
        phase = add_product(
            m, phase, weights[DOWN], row_of(m, FCPROJB, layer), hidden, forms, table_of(m, layer + 1)[Q]
        )
    head = table_of(m, m.L)
    phase = normalize(m, phase, row_of(m, LNFW, 0), row_of(m, LNFB, 0), normed, forms, forms_for(head, Q, Q + 1))
    make_logits(m, phase, head[Q], normed, forms)


@kernel(i64, i64, i64)
def _all_take_part(function, block, threads):
    for thread in prange(threads):
        call_entry(function, (block, thread))
