from llmpy.kernels.cuda.decode import fused_linear, matrix
from llmpy.kernels.cuda.runtime import copies
from tests.kernels.cuda.compiling import Case

POINTERS = ("y", "x", "q", "residual", "parts", "gain", "shift", "b", "cos", "sin", "scales")
NUMBERS = (
    *("S", "C", "OC", "H", "stride", "scale_stride", "q_width", "kv_width", "hs", "slot_stride"),
    *("time_stride", "head_stride"),
)
SIGNATURE = {
    **dict.fromkeys(POINTERS, "*fp32"),
    **dict.fromkeys(("slots", "positions", "tokens"), "*i32"),
    **dict.fromkeys(NUMBERS, "i32"),
    "eps": "fp32",
}


def product(name, kernel, w, outputs, channels=None, cache="bf16", **constants):
    """A product with a weight of numbers w ("q8": 8 bits), with a norm of rows of so many `channels` before it."""
    quantized = w == "q8"
    options = fused_linear.configuration(outputs, w == "bf16", quantized, interpreted=False)
    if kernel in (fused_linear._gated, fused_linear._heads):
        options = fused_linear._pairs(options)
    if channels is None:
        constants = {"most_parts": 128, **constants}
    else:
        part = fused_linear.part_of(channels, interpreted=False)
        constants |= {"part": part, "most_parts": fused_linear.power_of_2(fused_linear.cdiv(channels, part))}
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages")}
    signature = {**SIGNATURE, "w": "*i8" if quantized else f"*{w}", "keys": f"*{cache}", "values": f"*{cache}"}
    if not quantized:
        constants |= {"scales": None, "scale_stride": 0}
    return Case(
        name=f"{name}-{w}-{outputs}",
        kernel=kernel,
        signature=signature,
        constants={**constants, **options},
        aligned=tuple(name for name in kernel.arg_names if name not in ("S", "eps")),
        options=launch,
        tensor_cores="HMMA",
    )


CASES = [
    case
    for w in ("fp32", "bf16", "q8")
    for case in (
        product("head-layernorm", fused_linear._linear, w, 50257, 768, b=None, with_gelu=False),
        product("fc-gelu", fused_linear._linear, w, 3072, 768, with_gelu=True),
        product("add", fused_linear._add_linear, w, 768),
        product("add", fused_linear._add_linear, w, 8192, b=None),
        product("gated", fused_linear._gated, w, 2 * 14336, 4096, shift=None),
        product("heads-gpt2", fused_linear._heads, w, 2304, 768, cos=None, sin=None, interleaved=False),
        product("heads-halves", fused_linear._heads, w, 6144, 4096, shift=None, b=None, interleaved=False),
        product("heads-neighbours", fused_linear._heads, w, 960, 576, "fp32", shift=None, b=None, interleaved=True),
    )
] + [
    product("fc-gelu", fused_linear._linear, "fp16", 3072, 768, with_gelu=True),
]
CASES += [
    Case(
        name=f"embed-{'prompt' if prompt else 'step'}-{w}",
        kernel=fused_linear._embed,
        signature={
            **SIGNATURE,
            "w": "*i8" if w == "q8" else f"*{w}",
            "x": "*bf16" if prompt else "*fp32",
            "wpe": "*fp32",
        },
        constants={
            **({"parts": None} if prompt else {}),
            **({} if w == "q8" else {"scales": None, "scale_stride": 0}),
            "block": 1024 if prompt else 16,
            "most_parts": 1 if prompt else 256,
        },
        aligned=("x", "w", "scales", "wpe", "C", "stride", "scale_stride"),
        options={"num_warps": 4 if prompt else 1},
    )
    for w in ("bf16", "q8")
    for prompt in (True, False)
]
CASES += [
    Case(
        name=f"dequantize-{w}-{made}",
        kernel=matrix._dequantize,
        signature={**SIGNATURE, "w": "*i8" if w == "q8" else f"*{w}", "made": f"*{made}"},
        constants={**({} if w == "q8" else {"scales": None, "scale_stride": 0}), "rows": 4, "columns": 256},
        aligned=("made", "w", "scales", "stride", "scale_stride", "OC", "C"),
    )
    for w, made in (("q8", "bf16"), ("fp16", "fp32"))
]
CASES += [
    Case(
        name=f"copy-{source}",
        kernel=copies._copy,
        signature={
            "to": "*bf16",
            "source": f"*{source}",
            **dict.fromkeys([name for name in copies._copy.arg_names if name not in ("to", "source", "block")], "i32"),
        },
        constants={"block": 1024, "to3": 1, "from3": 1},
        aligned=("to", "source", "n2", "n3", "to1", "to2", "from1", "from2"),
    )
    for source in ("bf16", "fp32")
]
