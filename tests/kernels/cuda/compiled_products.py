from llmpy.kernels.cuda import classifier
from llmpy.kernels.cuda.gemm.problem import BIAS, BIAS_GELU, BIAS_RESIDUAL, GELU_GRADIENT, NN, NOTHING, NT, TN
from llmpy.kernels.cuda.gemm.tile_sizes import ROUGH, table
from llmpy.kernels.cuda.gemm.triton_gemm import GROUP, add_parts, multiply_tile, slices
from llmpy.kernels.cuda.primitives import reduce
from tests.kernels.cuda.compiling import CAPABILITIES, Case

NUMBERS = ("M", "N", "K", "a_rows", "a_depth", "c_columns", "part_depth", "a_stride", "b_stride", "c_stride")
# Layout, what follows, type of the result, added to it
FORMS = {
    "logits": (NT, NOTHING, "fp32", False),
    "bias": (NT, BIAS, "bf16", False),
    "residual": (NT, BIAS_RESIDUAL, "bf16", False),
    "gelu": (NT, BIAS_GELU, "bf16", False),
    "dx": (NN, NOTHING, "bf16", False),
    "dx-gelu": (NN, GELU_GRADIENT, "bf16", False),
    "dw": (TN, NOTHING, "fp32", False),
    "dw-added": (TN, NOTHING, "fp32", True),
}
HEAVIEST = "dx-gelu"  # in registers


def product(form, tiles, capability, operands="bf16", whole=True, odd=None):
    """A tile of a model whose sizes 16 divides; or one where they are anything, or but for those named `odd`."""

    def aligned(name):
        return name.startswith("part") or (name != odd if whole or odd else name in types)

    layout, epilogue, result, accumulate = FORMS[form]
    result = result if operands == "bf16" else "fp32"
    types = {"c": f"*{result}", "a": f"*{operands}", "b": f"*{operands}", "bias": "*fp32", "extra": f"*{result}"}
    return Case(
        name="-".join(
            [form, operands, *(str(size) for size in tiles[:3]), *([] if whole else [f"odd-{odd or 'rows'}"])]
        ),
        kernel=multiply_tile,
        signature={**types, **dict.fromkeys((*NUMBERS, "extra_stride"), "i32")},
        constants={
            "a_turned": layout == TN,
            "b_turned": layout == NT,
            "whole": whole,
            "accumulate": accumulate,
            "epilogue": epilogue,
            "biased": epilogue in (BIAS, BIAS_RESIDUAL, BIAS_GELU),
            "group": GROUP,
            "slices": slices(epilogue, accumulate),
            "block_m": tiles.block_m,
            "block_n": tiles.block_n,
            "block_k": tiles.block_k,
        },
        aligned=tuple(name for name in (*types, *NUMBERS, "extra_stride") if aligned(name)),
        options={"num_warps": tiles.warps, "num_stages": tiles.stages},
        tensor_cores=operands == "bf16",
        capabilities=(capability,),
    )


def products():
    for capability in CAPABILITIES:
        (largest, _), *others = table(divmod(capability, 10), True)
        yield from (product(form, largest, capability) for form in FORMS)
        yield from (product(HEAVIEST, tiles, capability) for tiles, _ in others)
    for form in (HEAVIEST, "dx", "dw-added"):
        yield from (product(form, tiles, 90, "fp32") for tiles, _ in table((9, 0), False))
    largest = table((9, 0), True)[0][0]
    for form, odd in (("logits", "N"), ("dx", "K"), ("dw-added", "M")):  # as the vocabulary of GPT-2 is
        yield product(form, largest, 90, whole=False, odd=odd)
    for form in ("bias", HEAVIEST):
        yield product(form, ROUGH[0][0], 90, whole=False)
    yield product("bias", ROUGH[0][0], 90, "fp32", whole=False)
    for tiles, _ in table((8, 9), True)[:3]:
        yield product(HEAVIEST, tiles, 89)


def cross_entropy(logits, gradients, backward):
    chosen = classifier.configuration(50257)
    numbers = ("V", "width", "stride", "gradient_stride")
    types = {"losses": "*fp32", "logits": f"*{logits}", "gradients": f"*{gradients}", "targets": "*i32"}
    return Case(
        name=f"cross-entropy-{logits}-{gradients}-{'backward' if backward else 'forward'}",
        kernel=classifier.cross_entropy,
        signature={**types, **dict.fromkeys(numbers, "i32"), "scale": "fp32"},
        constants={"backward": backward, "block": chosen["block"]},
        aligned=(*types, "width", "stride", "gradient_stride"),  # the vocabulary of GPT-2 is odd
        options={"num_warps": chosen["num_warps"]},
    )


def column_sums_cases():
    chosen = reduce.column_sums_configuration(65536, 3072)
    warps = {"num_warps": chosen["num_warps"]}
    for dtype in ("fp32", "bf16"):
        signature = {
            "sums": "*fp32",
            "x": f"*{dtype}",
            **dict.fromkeys(("rows", "columns", "stride", "piece_rows"), "i32"),
        }
        blocks = {name: chosen[name] for name in ("block_rows", "block_columns")}
        yield Case(f"column-sums-{dtype}", reduce.sum_pieces, signature, blocks, tuple(signature), warps)
    signature = {"y": "*fp32", "sums": "*fp32", "pieces": "i32", "columns": "i32"}
    blocks = {"block_pieces": reduce.PIECES, "block_columns": chosen["block_columns"]}
    yield Case("column-sums-ended", reduce.add_pieces, signature, blocks, tuple(signature), warps)
    for dtype in ("fp32", "bf16"):
        signature = {"c": f"*{dtype}", "parts": "*fp32", "count": "i32", "size": "i32"}
        constants = {"accumulate": dtype == "fp32", "block": 1024}
        yield Case(f"parts-{dtype}", add_parts, signature, constants, ("c", "parts", "size"))


CASES = [
    *products(),
    cross_entropy("fp32", "fp32", True),
    cross_entropy("fp32", "bf16", True),
    cross_entropy("bf16", "bf16", True),
    cross_entropy("fp32", "fp32", False),
    *column_sums_cases(),
]
