"""The kernel contract: every operation of a model, its arguments and shapes. Every backend has them all.

Output first, in place, nothing allocated by the caller's leave: a forward pass writes its outputs; a backward pass
writes gradients of activations and adds (`+=`) to gradients of parameters. Where a large parameter gradient takes
`accumulate`, False means "write instead of add": the first micro-step of an optimizer step need not clear it first.

Arrays are float32 (the reference takes float64 too) and C-contiguous, except q, k, v and their gradients, and what rope
turns, which may be strided views of one [B, T, (NH + 2 NKV) * hs] buffer as long as the last axis is contiguous. Tokens
and targets are int32. A backend with bfloat16 takes activations and their gradients (x, y, q, k, v, residual ...) as
ml_dtypes.bfloat16 too, all of a call alike; parameters and their gradients, mean, rstd, lse, losses and logits stay
float32, and so does all arithmetic but the products. The weights of linear layers are then `Weight`s:

    weight_size(OC, C) -> int
        bfloat16 numbers that a Weight takes
    Weight(numbers, OC, C)
        a weight [OC, C] in memory of that size, as the products of this machine read it
    pack_weight(weight, w, rounding=0)
        the float32 w [OC, C] -> the weight, rounded to the nearest; or at random, with the seed `rounding` if not 0

Letters: N rows (batch times time), C channels, OC output channels, B batch, T time, NH heads, NKV key/value heads,
hs head size, H hidden channels, V vocabulary, S sequences being decoded.

    embedding_forward(x, tokens, wte, wpe=None, start=0)
        x [B, T, C] = wte[tokens [B, T]] + wpe[start : start + T]
        without wpe, of tokens alone
    embedding_backward(dwte, dwpe, dx, tokens)
        dwpe may be None

    layernorm_forward(y, mean, rstd, x, w, b)
        y, x [N, C]; mean, rstd [N]; w, b [C]
    layernorm_backward(dresidual, dw, db, dy, x, w, mean, rstd)
        adds to dresidual [N, C], too: the norm hangs off the residual stream, which has a gradient already

    rmsnorm_forward(y, rstd, x, w, eps=1e-5)
        y, x [N, C]; rstd [N]; w [C]
    rmsnorm_backward(dresidual, dw, dy, x, w, rstd)
        adds to dresidual [N, C], too

    linear_forward(y, x, w, b=None, residual=None, pre_gelu=None)
        y [N, OC] = x [N, C] @ w [OC, C]^T + b [OC]; w may be a Matrix of any type of numbers, and x of any precision
        residual [N, OC] is added to y (y may be the same array)
        pre_gelu [N, OC] receives the product, and y its GELU
    linear_backward(dx, dw, db, dy, x, w, gelu=False, accumulate=True)
        dw and db first, then dx [N, C] = dy @ w; dx may be the same array as x; any of the three may be None
        gelu: x is the input of a GELU before the layer; it becomes its GELU, dx (another array) the gradient by it

    gelu_forward(y, x)
        any shape
    gelu_backward(dx, dy, x)
        dx may be the same array as dy

    swiglu_forward(y, gateup, up=None)
        y [N, H] = silu(gate) * up; gateup [N, 2 H] has the columns of gate, then those of up, or the two are apart
    swiglu_backward(dgateup, y, dy, gateup)
        y is made again; dgateup may be the same array as gateup, y the same as dy

    rope_forward(x, cos, sin, interleaved=True, positions=None)
        x [B, T, heads, hs] in place; cos, sin [maxT, hs/2]; positions int32 [B] of x[:, 0], None for 0;
        pairs of channels are neighbours (interleaved) or half a head apart
    rope_backward(dx, cos, sin, interleaved=True, positions=None)

    dropout(y, x, probability, key, residual=None)
        any shape; y may be the same array as x or residual; the same key gives the same mask: it is its own backward

    attention_forward(y, lse, q, k, v)
        causal; y, q [B, Tq, NH, hs] of the last Tq of T tokens; k, v [B, T, NKV, hs]; lse [B, NH, Tq]
    attention_backward(dq, dk, dv, dy, q, k, v, y, lse)
        of all T tokens; dq, dk, dv may be the same arrays as q, k, v

    Decode(config, weights, keys, values, cos=None, sin=None)
        one token for a few sequences, the whole model in one call: over a model's StoredWeights and a cache of keys and
        values [L, slots, T, NKV, hs], in memory with a head's T rows together; cos, sin [T, hs/2] for a Llama
    Decode(...)(logits, x, slots, positions)
        logits [S, V] after x [S, C], the embeddings of the newest tokens of S sequences, int32 slots and positions [S];
        each attends to 0..position
    Decode(...).renew()
        after the weights have changed

    classifier_forward(losses, x, w, targets, logits)
        losses [N] of the head w [V, C]; logits [R, V] is scratch for R rows at a time;
        a target of -1 counts for nothing, its loss is 0
    classifier_backward(losses, dx, dw, x, w, targets, scale, logits, accumulate=True)
        the losses, and the gradients of scale * their sum; one pass, so the products of the forward pass are made once

    adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale, weight=None, rounding=0)
        flat [n]; step counts from 1; with a weight they are [OC, C], and it becomes p as `pack_weight` makes it
    global_norm(g) -> float
        the L2 norm of flat [n]

A backend with memory of its own has the arrays there (tokens, slots and positions of `Decode` are the host's, logits
may be), and what brings models there:

    take(plan, advice) -> arrays
        those of a MemoryPlan, zeroed
    upload_weights(weights) -> weights
        StoredWeights there, which is what the others here take; themselves where they are there
    matrix_of(array) -> matrix
        an array [OC, C] of float32 there as one of the matrices of StoredWeights
    embed_rows(x, weights, tokens, positions)
        x [T, C], the embeddings of int32 tokens [T] of the host at positions [T]
    copy(to, source)
        any views of the same shape; they may overlap
    Decode(...)(logits, tokens, slots, positions)
        int32 tokens [S] instead of x
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llmpy.errors import UserError
from llmpy.utils import progress_bar

if TYPE_CHECKING:
    from llmpy.utils.memory import MemoryPlan

BACKENDS = ("reference", "cpu", "cuda")
_BACKEND = re.compile(rf"({'|'.join(BACKENDS)})|cuda:(\d{{1,4}})")
OPERATIONS = (
    "embedding_forward",
    "embedding_backward",
    "layernorm_forward",
    "layernorm_backward",
    "rmsnorm_forward",
    "rmsnorm_backward",
    "linear_forward",
    "linear_backward",
    "gelu_forward",
    "gelu_backward",
    "swiglu_forward",
    "swiglu_backward",
    "rope_forward",
    "rope_backward",
    "dropout",
    "attention_forward",
    "attention_backward",
    "classifier_forward",
    "classifier_backward",
    "adamw",
    "global_norm",
)


def load(backend: str) -> ModuleType:
    """The module that holds the operations of a backend, imported on demand; "cuda:1" is "cuda" on the second GPU.

    Raises UserError for an unknown name, and where the GPU, or what it needs, is missing.
    """
    name, ordinal = _parsed(backend)
    if name == "cuda":
        from llmpy.kernels import gpu_requirements

        gpu_requirements.check()
    module = importlib.import_module(f"llmpy.kernels.{name}")
    if ordinal is not None:
        module.choose(ordinal)
    return module


def _parsed(backend: str) -> tuple[str, int | None]:
    """The name of a backend, and the number of the GPU that is asked for."""
    if (match := _BACKEND.fullmatch(backend)) is None:
        raise UserError(f"no kernels for {backend!r}: use auto, {', '.join(BACKENDS)}, or cuda:N for the N-th GPU")
    return match[1] or "cuda", int(match[2]) if match[2] else None


def is_device(name: str) -> bool:
    """Is this what --device takes?"""
    return name == "auto" or _BACKEND.fullmatch(name) is not None


@cache
def backend_of(device: str) -> str:
    """The backend of what --device asks for: auto is cuda where a GPU answers and all that it needs is there, else cpu.

    Says, once, what keeps a GPU from being used. Nothing is loaded, and without a GPU nothing is spent.
    """
    if device != "auto":
        return device
    from llmpy.kernels import gpu_detect, gpu_requirements

    driver = None if gpu_requirements.is_interpreted() else gpu_detect.ask()
    if driver is None or not driver.cards:
        return "cpu"
    if lacks := gpu_requirements.missing():
        progress_bar.note(
            f"computing on the CPU: for the {driver.cards[0].name}, {lacks.name} is missing: {lacks.remedy}"
        )
        return "cpu"
    return "cuda"


def start(backend: str, threads: int | None = None, precision: str = "float32") -> ModuleType:
    """`load`, and the backend made ready: its threads set, its kernels compiled, showing how far that is.

    Raises UserError for an unknown backend, a number of threads that the machine has not, a GPU that is not there.
    """
    module = load(backend)
    if hasattr(module, "open_device"):
        module.open_device(precision)
    if hasattr(module, "set_threads"):
        module.set_threads(threads)
    if hasattr(module, "notice") and (notice := module.notice()):
        progress_bar.note(notice)
    if hasattr(module, "compile_all"):
        with progress_bar.bar("compiling the kernels, once on this machine", unit="kernels") as bar:

            def report(done: int, total: int, name: str) -> None:
                bar.total = total
                bar.advance(done - bar.done)

            module.compile_all(report, precision)
    return module


# ---- memory and speed, of whatever computes ------------------------------------------------------------------------


def take(plan: MemoryPlan, backend: str, *advice: str) -> dict[str, Any]:
    """All arrays of a plan, zeroed, where the backend computes: NumPy's, or those of its device.

    Raises UserError, before anything is taken, where there is less memory; `advice` says how to need less.
    """
    module = load(backend)
    return module.take(plan, *advice) if hasattr(module, "take") else plan.take(*advice)


def room(backend: str) -> int | None:
    """Bytes that a plan may have where the backend computes; None where nobody says."""
    from llmpy.utils import system_memory  # here, because `--help` needs no arrays

    module = load(backend)
    return module.room() if hasattr(module, "room") else system_memory.room()


def device_name(backend: str) -> str | None:
    """Of a device with memory of its own; None where the machine's is used."""
    module = load(backend)
    return module.device_name() if hasattr(module, "device_name") else None


def peak_flops(backend: str, precision: str) -> float | None:
    """FLOP/s that the device could do at most in this precision; None where that is not known."""
    module = load(backend)
    return module.peak_flops(precision) if hasattr(module, "peak_flops") else None
