"""Attention for every head size that models have, as each GPU is to run it."""

from llmpy.kernels.cuda.attention.backward import _backward_keys, _backward_queries, _copy
from llmpy.kernels.cuda.attention.block_sizes import configuration
from llmpy.kernels.cuda.attention.forward import _forward
from llmpy.kernels.cuda.attention.tiles import shape
from llmpy.kernels.cuda.decode.attention import _spans, _together, spans_of
from tests.kernels.cuda.compiling import CAPABILITIES, Case

ACTIVATIONS = {"y", "q", "k", "v", "dq", "dk", "dv", "dy", "to", "x"}
FLOATS = {"lse", "logs", "means", "sums", "tops", "totals", "cos", "sin"}
INTEGERS = {"positions", "slots"}
TRAINING = (("forward", _forward), ("queries", _backward_queries), ("keys", _backward_keys))


def signature(kernel, dtype):
    """By the names of its arguments; an address, and what tells rows apart, is always a multiple of 16."""
    types = {}
    for name in kernel.arg_names:
        if name in ACTIVATIONS:
            types[name] = f"*{dtype}"
        elif name in FLOATS:
            types[name] = "*fp32"
        elif name in INTEGERS:
            types[name] = "*i32"
        else:
            types[name] = "fp32" if name == "scale" else "i32"
    steps = ("_batch", "_row", "_head", "_slot")
    aligned = tuple(n for n, kind in types.items() if kind.startswith("*") or n.endswith(steps) or n == "padded")
    return {"signature": types, "aligned": aligned}


def case(kernel, name, constants, capability, dtype="bf16", tensor_cores=True, **options):
    for option in ("num_warps", "num_stages"):
        if option in constants:
            options[option] = constants.pop(option)
    return Case(
        name=f"{kernel.__name__.strip('_')}-{name}-{dtype}",
        kernel=kernel,
        constants=constants,
        options=options,
        tensor_cores=dtype == "bf16" and tensor_cores,
        capabilities=(capability,),
        **signature(kernel, dtype),
    )


def training(head_size, capability, dtype="bf16", rope=None, grouped=False):
    """The three kernels; `rope` says whether pairs are neighbours."""
    name = f"{head_size}{'' if rope is None else '-neighbours' if rope else '-halves'}{'-grouped' if grouped else ''}"
    constants = shape(head_size, None if rope is None else ("cos", "sin", rope)) | ({} if grouped else {"group": 1})
    made = []
    for part, kernel in TRAINING:
        blocks = configuration(part, head_size, dtype == "bf16", capability, rope is not None)
        rows = blocks["keys" if part == "keys" else "queries"]
        made.append(case(kernel, name, constants | blocks, capability, dtype, rows >= 64 or "HMMA"))
    return made


def decoding(head_size, group, capability, dtype="bf16"):
    constants = spans_of(2048, head_size, group)
    block, name = constants.pop("block"), f"{head_size}-{group}"
    together = {name: constants[name] for name in ("size", "wide", "span", "spans")} | {"block": block}
    return [
        case(_spans, name, constants | {"chosen": True}, capability, dtype, "HMMA", num_warps=4, num_stages=2),
        case(_together, name, together, capability, dtype, tensor_cores=False, num_warps=4),
    ]


CASES = [  # 96 is read as 80 is
    *(made for hs in (64, 80, 128) for capability in CAPABILITIES for made in training(hs, capability)),
    *training(96, 90),
    *training(64, 90, rope=True, grouped=True),
    *training(128, 90, rope=False, grouped=True),
    *training(64, 90, "fp32"),
    *(made for capability in CAPABILITIES for made in decoding(128, 4, capability)),
    *(made for dtype in ("bf16", "fp32") for made in decoding(64, 1, 90, dtype)),
    case(_copy, "64", {"size": 64, "wide": 64, "rows": 64}, 90, tensor_cores=False),
]
