"""The kernels that memory limits, at the widths of a Llama of 15M, of GPT-2 124M and 1558M, and of the longest rows."""

from llmpy.kernels.cuda import embedding, layernorm, optimizer, rmsnorm, rope, swiglu
from llmpy.kernels.cuda.dropout import BLOCK, _dropout
from llmpy.kernels.cuda.primitives import reduce, sort_tokens
from llmpy.kernels.cuda.primitives.row_blocks import row_tile
from tests.kernels.cuda.compiling import Case

ACTIVATIONS = ("y", "x", "dx", "dy", "dresidual", "residual", "gate", "up", "gateup", "dgateup")
FLOAT32 = (
    *("w", "b", "mean", "rstd", "dwte", "wte", "wpe", "parts", "cos", "sin", "p", "g", "m", "v", "norm", "scale"),
    *("rate", "one_minus_beta1", "one_minus_beta2", "v_scale", "decay", "grad_scale", "eps", "largest"),
)  # fmt: skip
NUMBERS = {"rate", "one_minus_beta1", "one_minus_beta2", "v_scale", "decay", "grad_scale", "eps", "largest"}
INT32 = ("tokens", "order", "sorted_tokens", "keys", "positions")


def types(kernel, dtype, given):
    """The types of a kernel's arguments by their names, of activations in `dtype`."""
    found = dict.fromkeys(ACTIVATIONS, f"*{dtype}") | dict.fromkeys(FLOAT32, "*fp32") | dict.fromkeys(INT32, "*i32")
    found |= {"weight": "*bf16", "key": "*u64"} | dict.fromkeys(NUMBERS, "fp32") | given
    return {name: found.get(name, "i32") for name in kernel.arg_names}


def case(name, kernel, constants, dtype="fp32", unaligned=(), given=None, **options):
    signature = types(kernel, dtype, given or {})
    aligned = tuple(
        argument
        for argument, kind in signature.items()
        if kind != "fp32" and argument not in (*constants, *unaligned, "low", "high", "threshold", "seed", "start")
    )
    return Case(f"{name}-{dtype}", kernel, signature, constants, aligned, options)


def in_rows(name, kernel, block, dtype, constants=None, **more):
    shape = {"rows": block["rows"], "columns": block["columns"]}
    return case(name, kernel, {**shape, **(constants or {})}, dtype, num_warps=block["num_warps"], **more)


def norms():
    for dtype, widths in (("bf16", (288, 768, 1600, 8192)), ("fp32", (768, 8192))):
        for C in widths:
            for name, module in (("layernorm", layernorm), ("rmsnorm", rmsnorm)):
                given = {"eps": "fp32"}
                yield in_rows(f"{name}_forward-{C}", module._forward, row_tile(C), dtype, given=given)
                yield in_rows(f"{name}_backward-{C}", module._backward, row_tile(C), dtype)
    yield in_rows("layernorm_forward-131", layernorm._forward, row_tile(131), "bf16", unaligned=("C",))


def others():
    for dtype in ("bf16", "fp32"):
        for H in (256, 11008):
            block = row_tile(min(H, swiglu.COLUMNS))
            yield in_rows(f"swiglu_forward-{H}", swiglu._forward, block, dtype)
            yield in_rows(f"swiglu_backward-{H}", swiglu._backward, block, dtype)
        for hs in (64, 80):
            for interleaved in (True, False):
                constants = {"half": hs // 2, "interleaved": interleaved, "placed": interleaved}
                block, given = row_tile(hs // 2), {"direction": "fp32"}
                name = f"rope-{hs}-{'interleaved' if interleaved else 'halves'}"
                yield in_rows(name, rope._turn, block, dtype, constants, given=given, unaligned=("heads",))
        for on_device in (True, False):
            constants = {"on_device": on_device, "add": on_device, "block": BLOCK}
            given = {"scale": "fp32"}
            yield case(f"dropout-{'device' if on_device else 'host'}", _dropout, constants, dtype, given=given)
        for C in (768, 8192):
            block = row_tile(min(C, embedding.COLUMNS))
            yield in_rows(f"embedding_forward-{C}", embedding._forward, block, dtype, {"positions": C == 768})
            block = {"rows": embedding.ROWS, "columns": block["columns"], "num_warps": 4}
            yield in_rows(f"embedding_sums-{C}", embedding._sum_chunk, block, dtype)
    block = {"rows": embedding.ROWS, "columns": embedding.JOINED, "num_warps": 4}
    yield in_rows("embedding_joins", embedding._join_chunks, block, "fp32", {"chunks": embedding.CHUNKS})
    run = {"run": sort_tokens.RUN, "block": sort_tokens.BLOCK}
    yield case("embedding_runs", sort_tokens._sort_run, {**run, "across": sort_tokens.ACROSS})
    yield case("embedding_order", sort_tokens._merge_runs, {**run, "halvings": sort_tokens.RUN.bit_length()})


def sums():
    for dtype, columns in (("fp32", 768), ("bf16", 2**20)):
        block = reduce.rows_configuration(columns)
        yield in_rows(f"column_sums-{columns}", reduce._add_rows, block, dtype, given={"y": "*fp32"})
    for squares in (True, False):
        constants, given = {"squares": squares, "block": reduce.BLOCK}, {"parts": "*fp64"}
        yield case(f"sums-of-{'squares' if squares else 'numbers'}", reduce._sum_parts, constants, given=given)
    constants = {"block": reduce.PROGRAMS}
    yield case("mean", reduce._finish_mean, constants, given={"mean": "*fp32", "parts": "*fp64"})
    yield case("norm", optimizer._finish_norm, constants, given={"parts": "*fp64"})


def updates():
    for name, copied, at_random in (("plain", False, False), ("nearest", True, False), ("random", True, True)):
        constants = {"copied": copied, "at_random": at_random, "block": optimizer.BLOCK}
        on_device = {"given": {"grad_scale": "*fp32"}} if copied else {}
        constants["scale_on_device"] = copied
        yield case(f"adamw-{name}", optimizer._adamw, constants, **on_device)
    for at_random in (True, False):
        constants = {"at_random": at_random, "block": optimizer.BLOCK}
        yield case(f"pack-{'random' if at_random else 'nearest'}", optimizer._pack_weight, constants)


CASES = [*norms(), *others(), *sums(), *updates()]
