from llmpy.kernels.cuda import gelu
from tests.kernels.cuda.compiling import Case

CASES = [
    Case(
        name=f"{kernel.__name__.strip('_')}-{dtype}",
        kernel=kernel,
        signature={**dict.fromkeys(("y", "x", "dx", "dy"), f"*{dtype}"), "n": "i32"},
        constants={"block": 2048},
        aligned=(*(name for name in kernel.arg_names if name in ("y", "x", "dx", "dy")), "n"),
    )
    for kernel in (gelu._forward, gelu._backward)
    for dtype in ("fp32", "bf16")
]
