"""One token for each of a few sequences: the whole model, from tokens to logits, in one graph of kernels.

    for every layer:
        q, k, v of norm(x), q and k turned by their position; k and v go into the cache
        attention
        x += attproj
        hidden = silu(gate) * up, or gelu(fc), of norm(x)
        x += down
    logits = head of norm(x)

Each line is one kernel. For every number of sequences they are captured once and started together afterwards.
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
from llmpy.kernels.cuda.decode.matrix import DeviceMatrix
from llmpy.kernels.cuda.decode.upload_weights import upload_weights
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.limits import take
from llmpy.quant.types import F32
from llmpy.utils.memory import MemoryPlan

if TYPE_CHECKING:
    from llmpy.models.config import ModelConfig
    from llmpy.models.inference_weights import StoredWeights


class Decode:
    """Decodes with the weights of a model, over a cache that others may write, too.

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
            ("given", slots, C),
            ("parts", *parts_shape(slots, C)),
            ("q", slots, NH * hs),
            ("att", slots, NH * hs),
            ("hidden", slots, H),
            ("logits", slots, config.vocab_size),
        ):
            plan.add("decoding", name, *shape)
        plan.add("decoding", "placed", 3 * slots, dtype=np.int32)
        self._arrays = take(plan, "make fewer texts side by side")
        self._given = DeviceMatrix(F32, (slots, C), self._arrays["given"])
        self._steps: dict[tuple[int, bool], Callable[[], None]] = {}

    def __call__(
        self, logits: np.ndarray | DeviceArray, x: np.ndarray | DeviceArray, slots: np.ndarray, positions: np.ndarray
    ) -> None:
        """x [S, C], the embeddings of the newest tokens of S slots, or the tokens themselves, int32 [S], at their
        positions -> logits [S, V] for the next ones. The cache then holds the newest, too.

        Tokens are embedded on the device, which is faster than bringing their embeddings there.
        """
        S, of_tokens = len(x), x.ndim == 1
        if not of_tokens:
            self._arrays["given"][:S] = x
        first = np.asarray(x) if of_tokens else np.arange(S)
        self._arrays["placed"][: 3 * S] = np.concatenate([first, slots, positions])
        if (S, of_tokens) not in self._steps:
            self._steps[S, of_tokens] = device.current().captured(partial(self._step, S, of_tokens))
        self._steps[S, of_tokens]()
        made = self._arrays["logits"][:S]
        if isinstance(logits, DeviceArray):
            logits[...] = made
        else:
            device.current().copy_out(logits, made.address)

    def renew(self) -> None:
        """Weights on the device are read where they lie; those that were copied there stay as they were."""

    def _step(self, S: int, of_tokens: bool) -> None:
        """The kernels of a step over S sequences, from what was put into `placed`, and into `given`."""
        c, w, a = self.config, self.weights, {name: array[:S] for name, array in self._arrays.items()}
        x, parts, q, att, hidden = (a[name] for name in ("x", "parts", "q", "att", "hidden"))
        tokens, slots, positions = (self._arrays["placed"][i * S : (i + 1) * S] for i in range(3))
        if of_tokens:
            embed(x, w.embedding, getattr(w, "wpe", None), tokens, positions, parts)
        else:
            embed(x, self._given, None, tokens, positions, parts)
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
