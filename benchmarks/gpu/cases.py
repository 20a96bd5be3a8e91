"""Calls of every operation of the contract in the shapes of models: what is checked, timed, and asked of PyTorch.

A case says what its arguments are; whoever uses it makes them: on the host, on the device, or in PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llmpy.models.config import ModelConfig
from llmpy.models.llama import LlamaConfig
from llmpy.models.presets import from_descriptor
from llmpy.models.registry import config_from_dict

ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 7, "grad_scale": 0.5}
HEAD_SIZES = (64, 80, 96, 128)
STORED = ("F32", "BF16", "Q8_0")  # types of the weights that are decoded with


@dataclass(frozen=True)
class Operand:
    """An array among the arguments. `kind`: acts (of the precision that computes), float32, int32, the `Weight` of a
    product, or one of STORED. `role`: in, out (written), sum (added to, or changed), scratch.

    int32 is random below `below`; other numbers are normal, times `scale`. Of a `whole` it is a part: those from
    `start` on along an axis of a larger array, which is known by the name.
    """

    shape: tuple[int, ...]
    kind: str = "acts"
    role: str = "in"
    below: int = 0
    scale: float = 1.0
    positive: bool = False
    whole: tuple[str, tuple[int, ...]] | None = None
    axis: int = 0
    start: int = 0


@dataclass(frozen=True)
class Same:
    """The array of another argument: what models write in place."""

    name: str


@dataclass(frozen=True)
class Case:
    """A call with these arguments by name; `size` and `label` say of what model, and which of its calls.

    `rope`: attention turns q and k as it reads them.
    """

    operation: str
    size: str
    label: str
    arguments: dict[str, Any]
    rope: bool = False

    @property
    def key(self) -> str:
        return f"{self.size} {self.operation} {self.label}".rstrip()

    def operands(self) -> dict[str, Operand]:
        return {name: value for name, value in self.arguments.items() if isinstance(value, Operand)}


def acts(*shape: int, role: str = "in", scale: float = 1.0) -> Operand:
    return Operand(shape, role=role, scale=scale)


def f32(*shape: int, role: str = "in", scale: float = 1.0, positive: bool = False) -> Operand:
    return Operand(shape, "float32", role, scale=scale, positive=positive)


def weight(OC: int, C: int) -> Operand:
    """A weight whose scale keeps the matmul with standard normal inputs at standard deviation 1."""
    return Operand((OC, C), "weight", scale=C**-0.5)


def tokens(below: int, *shape: int) -> Operand:
    return Operand(shape, "int32", below=below)


def named(model: str | dict[str, Any]) -> tuple[str, ModelConfig]:
    """The name and the config of a model that a plan names: a descriptor, or the fields of a config."""
    if isinstance(model, str):
        return model, from_descriptor(model)
    config = config_from_dict(model)
    return f"of {config.channels} channels", config


# ---- the calls of a training step ----------------------------------------------------------------------------------


def of_model(size: str, config: ModelConfig, B: int, T: int, rows: int = 4096, pad: int = 64) -> list[Case]:
    """Every operation that a step of the model calls, over B sequences of T tokens; `rows` of logits at a time."""
    llama = config.family == "llama"
    N, C = B * T, config.channels
    made = [*_embeddings(size, config, B, T), *_norms(size, N, C, llama), *_linears(size, config, N)]
    if llama:
        made += [*_swiglu(size, N, config.hidden), *_ropes(size, config, B, T)]
    else:
        made += _gelus(size, N, 4 * C)
    made.append(Case("dropout", size, f"{N} x {C}", {
        "y": acts(N, C, role="out"), "x": acts(N, C), "probability": 0.1, "key": 2**63 + 5, "residual": acts(N, C),
    }))  # fmt: skip
    made += attention(size, B, T, config.heads, _kv_heads(config), config.head_size, llama)
    made += _classifiers(size, N, C, config.vocab_size, rows, pad)
    return [*made, *_optimizer(size, config.vocab_size, C)]


def _kv_heads(config: ModelConfig) -> int:
    return config.kv_heads


def _embeddings(size: str, config: ModelConfig, B: int, T: int) -> list[Case]:
    V, C, with_positions = config.vocab_size, config.channels, config.family == "gpt2"
    given, label = tokens(V, B, T), f"{B * T} of {V} x {C}"
    return [
        Case("embedding_forward", size, label, {
            "x": acts(B, T, C, role="out"), "tokens": given, "wte": f32(V, C),
            "wpe": f32(T, C) if with_positions else None,
        }),
        Case("embedding_backward", size, label, {
            "dwte": f32(V, C, role="sum"), "dwpe": f32(T, C, role="sum") if with_positions else None,
            "dx": acts(B, T, C), "tokens": given,
        }),
    ]  # fmt: skip


def _norms(size: str, N: int, C: int, rms: bool) -> list[Case]:
    label, rstd = f"{N} x {C}", f32(N, scale=0.1, positive=True)
    forward = {"x": acts(N, C), "w": f32(C)}
    backward = {"dresidual": acts(N, C, role="sum"), "dw": f32(C, role="sum")}
    if rms:
        return [
            Case("rmsnorm_forward", size, label, {"y": acts(N, C, role="out"), "rstd": f32(N, role="out"), **forward}),
            Case("rmsnorm_backward", size, label, {**backward, "dy": acts(N, C), **forward, "rstd": rstd}),
        ]
    kept = {"mean": f32(N, role="out"), "rstd": f32(N, role="out")}
    return [
        Case("layernorm_forward", size, label, {"y": acts(N, C, role="out"), **kept, **forward, "b": f32(C)}),
        Case("layernorm_backward", size, label, {
            **backward, "db": f32(C, role="sum"), "dy": acts(N, C), **forward, "mean": f32(N, scale=0.1), "rstd": rstd,
        }),
    ]  # fmt: skip


def _linears(size: str, config: ModelConfig, N: int) -> list[Case]:
    """Forward and backward of the layers of a block, with what is fused to them there."""
    C, heads = config.channels, (config.heads + 2 * _kv_heads(config)) * config.head_size
    made = []
    if config.family == "llama":
        H, layers = config.hidden, {"qkv": (heads, C), "attproj": (C, config.heads * config.head_size)}
        layers |= {"gateup": (2 * H, C), "down": (C, H)}
    else:
        layers = {"qkv": (heads, C), "attproj": (C, C), "fc": (4 * C, C), "fcproj": (C, 4 * C)}
    for name, (OC, IC) in layers.items():
        biased = config.family == "gpt2"
        forward = {
            "y": acts(N, OC, role="out"),
            "x": acts(N, IC),
            "w": weight(OC, IC),
            "b": f32(OC) if biased else None,
        }
        if name in ("attproj", "fcproj", "down"):
            forward["residual"] = acts(N, OC)
        if name == "fc":
            forward["pre_gelu"] = acts(N, OC, role="out")
        # A gradient is written over what it is the gradient of, but for that of a GELU.
        gelu = name == "fcproj"
        backward = {
            "dx": acts(N, IC, role="out") if gelu else Same("x"), "dw": f32(OC, IC, role="sum"),
            "db": f32(OC, role="sum") if biased else None, "dy": acts(N, OC),
            "x": acts(N, IC, role="sum"), "w": weight(OC, IC), "gelu": gelu,
        }  # fmt: skip
        label = f"{name} {OC} x {IC}"
        made += [Case("linear_forward", size, label, forward), Case("linear_backward", size, label, backward)]
    return made


def _gelus(size: str, N: int, H: int) -> list[Case]:
    label = f"{N} x {H}"
    return [
        Case("gelu_forward", size, label, {"y": acts(N, H, role="out"), "x": acts(N, H)}),
        Case("gelu_backward", size, label, {"dx": Same("dy"), "dy": acts(N, H, role="sum"), "x": acts(N, H)}),
    ]


def _swiglu(size: str, N: int, H: int) -> list[Case]:
    label = f"{N} x {H}"
    return [
        Case("swiglu_forward", size, label, {"y": acts(N, H, role="out"), "gateup": acts(N, 2 * H)}),
        Case("swiglu_backward", size, label, {
            "dgateup": Same("gateup"), "y": Same("dy"), "dy": acts(N, H, role="sum"),
            "gateup": acts(N, 2 * H, role="sum"),
        }),
    ]  # fmt: skip


def _ropes(size: str, config: LlamaConfig, B: int, T: int) -> list[Case]:
    """Turning q and k in place, where attention does not do it."""
    turned, hs = config.heads + config.kv_heads, config.head_size
    whole = "qkv", (B, T, turned + config.kv_heads, hs)
    x = Operand((B, T, turned, hs), role="sum", whole=whole, axis=2)
    angles = {"cos": f32(T, hs // 2), "sin": f32(T, hs // 2), "interleaved": config.rope_interleaved}
    label = f"{B} x {T} x {turned} x {hs}"
    return [
        Case("rope_forward", size, label, {"x": x, **angles}),
        Case("rope_backward", size, label, {"dx": x, **angles}),
    ]


def attention(size: str, B: int, T: int, NH: int, NKV: int, hs: int, rope: bool = False) -> list[Case]:
    """Forward, and backward in place, of views of one buffer, as models have them."""
    whole, y = ("qkv", (B, T, NH + 2 * NKV, hs)), (B, T, NH, hs)
    parts = {"q": (0, NH), "k": (NH, NKV), "v": (NH + NKV, NKV)}
    qkv = {name: Operand((B, T, n, hs), whole=whole, axis=2, start=start) for name, (start, n) in parts.items()}
    changed = {name: replace(part, role="sum") for name, part in qkv.items()}
    label = f"{B} x {T} x {NH}{f' of {NKV}' if NKV != NH else ''} x {hs}{', turned' if rope else ''}"
    return [
        Case("attention_forward", size, label, {
            "y": acts(*y, role="out"), "lse": f32(B, NH, T, role="out"), **qkv,
        }, rope),
        Case("attention_backward", size, label, {
            "dq": Same("q"), "dk": Same("k"), "dv": Same("v"), "dy": acts(*y), **changed, "y": acts(*y),
            "lse": f32(B, NH, T),
        }, rope),
    ]  # fmt: skip


def _classifiers(size: str, N: int, C: int, V: int, rows: int, pad: int) -> list[Case]:
    R, width = min(rows, N), -(-V // pad) * pad
    logits = Operand((R, V), role="scratch", whole=("logits", (R, width)), axis=1)
    given = {"x": acts(N, C), "w": weight(V, C), "targets": tokens(V, N)}
    label = f"{N} x {V} x {C}"
    return [
        Case("classifier_forward", size, label, {"losses": f32(N, role="out"), **given, "logits": logits}),
        Case("classifier_backward", size, label, {
            "losses": f32(N, role="out"), "dx": acts(N, C, role="out"), "dw": f32(V, C, role="sum"), **given,
            "scale": 1 / N, "logits": logits, "accumulate": False,
        }),
    ]  # fmt: skip


def _optimizer(size: str, OC: int, C: int) -> list[Case]:
    g, m, v = f32(OC, C), f32(OC, C, role="sum", scale=0.1), f32(OC, C, role="sum", positive=True)
    copy = Operand((OC, C), "weight", "out")
    return [
        Case(
            "adamw", size, f"{OC * C}", {"p": f32(OC, C, role="sum"), "g": g, "m": m, "v": v, **ADAMW, "weight": copy}
        ),
        Case("global_norm", size, f"{OC * C}", {"g": f32(OC * C)}),
    ]


# ---- the calls of generation ---------------------------------------------------------------------------------------


def decode_attention(S: int, T: int, NH: int, NKV: int, hs: int) -> Case:
    """One query for each of S sequences, over caches of T tokens."""
    cache = acts(S, T, NKV, hs)
    return Case("attention_decode", "generation", f"{S} x {T} x {NH}{f' of {NKV}' if NKV != NH else ''} x {hs}", {
        "y": f32(S, NH, hs, role="out"), "q": f32(S, NH, hs), "k_cache": cache, "v_cache": cache,
        "positions": tokens(T, S),
    })  # fmt: skip


def few_rows(S: int, OC: int, C: int, kind: str) -> Case:
    """A product of S rows with a weight as it is stored, added to the residual stream."""
    return Case("linear of few rows", "generation", f"{S} x {OC} x {C} {kind}", {
        "y": f32(S, OC, role="sum"), "x": f32(S, C), "w": Operand((OC, C), kind, scale=C**-0.5), "b": f32(OC),
    })  # fmt: skip


# ---- what is timed -------------------------------------------------------------------------------------------------


def timed(sizes: dict[str, Any]) -> list[Case]:
    """`sizes`: models [name, B, T] and the rows of logits at a time; attention [B, T, NH, NKV, hs]; and of
    generation sequences, caches [T, NH, NKV, hs], and a matrix [OC, C]."""
    made = []
    for B, T, NH, NKV, hs in sizes["attention"]:
        made += attention("attention", B, T, NH, NKV, hs)
    for name, B, T in sizes["models"]:
        made += of_model(*named(name), B, T, sizes["logits"])
    made += [decode_attention(S, *heads) for S in sizes["sequences"] for heads in sizes["caches"]]
    return made + [few_rows(S, *sizes["matrix"], kind) for kind in STORED for S in sizes["sequences"]]
