"""Decoding: one token for each of a few sequences, from tokens to logits, in one CUDA graph.

    for every layer:
        q, k, v of norm(x), q and k rotated by their position; k and v are written to the KV cache
        attention
        x += attproj
        hidden = silu(gate) * up, or gelu(fc), of norm(x)
        x += down
    logits = head of norm(x)

Each line is one kernel. The kernels are captured once for every number of sequences, and launched together afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpy.kernels.cuda.decode.attention import attention_decode
from llmpy.kernels.cuda.decode.fused_linear import (
    LAYERNORM_EPS,
    Norm,
    add_linear,
    embed,
    gated,
    heads,
    linear,
    parts_shape,
)
from llmpy.kernels.cuda.decode.upload_weights import upload_weights
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.limits import take
from llmpy.utils.memory import MemoryPlan

if TYPE_CHECKING:
    from llmpy.models.config import ModelConfig
    from llmpy.models.inference_weights import StoredWeights


class Decode:
    """Decodes with the weights of a model, over a KV cache that the caller may write, too.

    keys and values [L, slots, T, NKV, hs] of the device, float32 or bfloat16; cos and sin [T, hs / 2] of every
    position, for a Llama. Weights that are not on the device are copied there.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: StoredWeights,
        keys: DeviceArray,
        values: DeviceArray,
        cos: DeviceArray | None = None,
        sin: DeviceArray | None = None,
    ) -> None:
        self.config: Any = config
        self.weights = upload_weights(weights)
        self.keys, self.values = keys, values
        self.angles = None if cos is None or sin is None else (cos, sin)
        slots, C, NH, hs = keys.shape[1], config.channels, config.heads, keys.shape[4]
        self.memory = plan = MemoryPlan()
        H = self.weights.layers[0].down.shape[1] if self.angles else 4 * C
        for name, *shape in (
            ("x", slots, C),
            ("parts", *parts_shape(slots, C)),
            ("q", slots, NH * hs),
            ("att", slots, NH * hs),
            ("hidden", slots, H),
            ("logits", slots, config.vocab_size),
        ):
            plan.add("decoding", name, *shape)
        plan.add("decoding", "placed", 3 * slots, dtype=np.int32)
        self._arrays = take(plan, "make fewer texts side by side")
        self._steps: dict[int, Callable[[], None]] = {}

    def __call__(
        self, logits: np.ndarray | DeviceArray, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray
    ) -> None:
        """Computes logits [S, V] after the newest tokens of S slots, and writes those tokens to the KV cache.

        tokens, slots and positions int32 [S] on the host
        """
        S = len(tokens)
        self._arrays["placed"][: 3 * S] = np.concatenate([tokens, slots, positions])
        if S not in self._steps:
            self._steps[S] = device.current().captured(partial(self._step, S))
        self._steps[S]()
        made = self._arrays["logits"][:S]
        if isinstance(logits, DeviceArray):
            logits[...] = made
        else:
            device.current().copy_out(logits, made.address)

    def renew(self) -> None:
        """Does nothing: weights on the device are read in place, and uploaded copies do not change."""

    def _step(self, S: int) -> None:
        """Launches the kernels of a step over S sequences, whose tokens, slots and positions are in `placed`."""
        c, w, a = self.config, self.weights, {name: array[:S] for name, array in self._arrays.items()}
        x, parts, q, att, hidden = (a[name] for name in ("x", "parts", "q", "att", "hidden"))
        tokens, slots, positions = (self._arrays["placed"][i * S : (i + 1) * S] for i in range(3))
        embed(x, w.embedding, getattr(w, "wpe", None), tokens, positions, parts)
        by_head = S, c.heads, c.head_size
        for layer, v in enumerate(w.layers):
            keys, values = self.keys[layer], self.values[layer]
            interleaved = getattr(c, "rope_interleaved", False)
            norm = self._norm(v, "ln1")
            heads(q, keys, values, x, v.qkv, v.qkvb, norm, slots, positions, self.angles, interleaved)
            attention_decode(att.reshape(*by_head), q.reshape(*by_head), keys, values, positions, slots)
            add_linear(x, parts, att, v.attproj, getattr(v, "attprojb", None))
            if self.angles:
                gated(hidden, x, v.gateup, self._norm(v, "ln2"))
                add_linear(x, parts, hidden, v.down)
            else:
                linear(hidden, x, v.fc, v.fcb, self._norm(v, "ln2"), with_gelu=True)
                add_linear(x, parts, hidden, v.fcproj, v.fcprojb)
        linear(a["logits"], x, w.head[: c.vocab_size], None, self._norm(w, "lnf"))

    def _norm(self, w: Any, name: str) -> Norm:
        eps = getattr(self.config, "norm_eps", LAYERNORM_EPS)
        return Norm(self._arrays["parts"], getattr(w, f"{name}w"), getattr(w, f"{name}b", None), eps)
