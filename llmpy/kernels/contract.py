"""The contract of a backend: every operation and every setting, with arguments, shapes and dtypes.

A backend is a module (`llmpy.kernels.reference`, `.cpu`, `.cuda`) that defines every name of `Backend`. mypy checks the
three modules against this class (backend.py), and a test compares all signatures. What most backends have in common is
in defaults.py.

Outputs come first and are written in place; no operation allocates memory. A forward pass overwrites its outputs. A
backward pass overwrites (=) the gradients of activations and accumulates (+=) the gradients of parameters. Where the
gradient of a large parameter takes `accumulate`, False overwrites the gradient, so the first micro-step of an optimizer
step needs no zeroed memory.

Arrays are float32 and C-contiguous (the reference takes float64 too). Exceptions: q, k, v, their gradients and the
input of rope may be strided views of one [B, T, (NH + 2 NKV) * hs] buffer whose last axis is contiguous. Tokens and
targets are int32. Where `PRECISIONS` has bfloat16, activations and their gradients (x, y, q, k, v, residual ...) may be
ml_dtypes.bfloat16, all of one call alike. Parameters, their gradients, mean, rstd, lse, losses and logits stay float32,
and all arithmetic except the matmuls runs in float32. The weights of linear layers are then `Weight`s.

Letters: N rows (batch times time), C channels, OC output channels, B batch, T time, NH heads, NKV key/value heads,
hs head size, H intermediate size, V vocabulary, S sequences that are decoded, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from llmpy.models.config import ModelConfig
    from llmpy.models.inference_weights import StoredWeights
    from llmpy.utils.memory import MemoryPlan

Array = Any  # a NumPy array, or a DeviceArray where the backend has a memory of its own
Rope = tuple[Array, Array, bool]  # cos, sin [maxT, hs/2], and whether the channels of a pair are neighbours

OPERATIONS = (
    *("embedding_forward", "embedding_backward"),
    *("layernorm_forward", "layernorm_backward", "rmsnorm_forward", "rmsnorm_backward"),
    *("linear_forward", "linear_backward", "gelu_forward", "gelu_backward", "swiglu_forward", "swiglu_backward"),
    *("rope_forward", "rope_backward", "dropout", "attention_forward", "attention_backward"),
    *("classifier_forward", "classifier_backward", "adamw", "global_norm"),
)


class Decoding(Protocol):
    """A `Decode` object of a backend: computes one token for a few sequences, the whole model in one call."""

    def __call__(self, logits: Array, tokens: Array, slots: Array, positions: Array) -> None:
        """Computes logits [S, V] after the newest tokens of S sequences, and appends those tokens to the KV cache.

        tokens, slots and positions are int32 [S] on the host. Each token attends to the positions 0..position.
        """

    def renew(self) -> None:
        """Reads norms and biases again; call `renew` after the weights have changed."""


class Backend(Protocol):
    """The names that every backend module defines."""

    # ---- operations ------------------------------------------------------------------------------------------------

    def embedding_forward(self, x: Array, tokens: Array, wte: Array, wpe: Array | None = None, start: int = 0) -> None:
        """x [B, T, C] = wte[tokens [B, T]] + wpe[start : start + T]; without wpe, the token embedding alone."""

    def embedding_backward(self, dwte: Array, dwpe: Array | None, dx: Array, tokens: Array) -> None:
        """Accumulates dwte [V, C] and dwpe [maxT, C] from dx [B, T, C]; dwpe may be None."""

    def layernorm_forward(self, y: Array, mean: Array, rstd: Array, x: Array, w: Array, b: Array) -> None:
        """y, x [N, C]; mean, rstd [N]; w, b [C]"""

    def layernorm_backward(
        self, dresidual: Array, dw: Array, db: Array, dy: Array, x: Array, w: Array, mean: Array, rstd: Array
    ) -> None:
        """Accumulates dw, db and dresidual [N, C]: the residual stream has a gradient already."""

    def rmsnorm_forward(self, y: Array, rstd: Array, x: Array, w: Array, eps: float = 1e-5) -> None:
        """y, x [N, C]; rstd [N]; w [C]"""

    def rmsnorm_backward(self, dresidual: Array, dw: Array, dy: Array, x: Array, w: Array, rstd: Array) -> None:
        """Accumulates dw and dresidual [N, C]."""

    def linear_forward(
        self, y: Array, x: Array, w: Any, b: Array | None = None, residual: Array | None = None,
        pre_gelu: Array | None = None,
    ) -> None:  # fmt: skip
        """y [N, OC] = x [N, C] @ w [OC, C]^T + b [OC] + residual [N, OC]; residual may be the same array as y.

        w may be a Matrix of any stored type, with x of any precision. With pre_gelu [N, OC], pre_gelu receives the
        result, and y receives its GELU.
        """

    def linear_backward(
        self, dx: Array | None, dw: Array | None, db: Array | None, dy: Array, x: Array, w: Any, gelu: bool = False,
        accumulate: bool = True,
    ) -> None:  # fmt: skip
        """Computes dw and db first, then dx [N, C] = dy @ w; dx may be the same array as x; each may be None.

        gelu: x is the input of a GELU before the layer. x becomes GELU(x), and dx, which must be another array, becomes
        the gradient of the GELU's input.
        """

    def gelu_forward(self, y: Array, x: Array) -> None:
        """y, x of any shape"""

    def gelu_backward(self, dx: Array, dy: Array, x: Array) -> None:
        """dx, dy, x of any shape; dx may be the same array as dy."""

    def swiglu_forward(self, y: Array, gateup: Array, up: Array | None = None) -> None:
        """y [N, H] = silu(gate) * up; gateup [N, 2 H] has the columns of gate, then those of up; or two arrays."""

    def swiglu_backward(self, dgateup: Array, y: Array, dy: Array, gateup: Array) -> None:
        """Recomputes y; dgateup may be the same array as gateup, and y the same as dy."""

    def rope_forward(
        self, x: Array, cos: Array, sin: Array, interleaved: bool = True, positions: Array | None = None
    ) -> None:
        """Rotates x [B, T, heads, hs] in place; cos, sin [maxT, hs/2]; positions int32 [B] of x[:, 0], None for 0.

        The channels of a pair are neighbours (interleaved) or half a head apart.
        """

    def rope_backward(
        self, dx: Array, cos: Array, sin: Array, interleaved: bool = True, positions: Array | None = None
    ) -> None:
        """Rotates dx [B, T, heads, hs] in place by the negative angles."""

    def dropout(self, y: Array, x: Array, probability: float, key: int, residual: Array | None = None) -> None:
        """y = dropout(x) + residual, any shape; y may be the same array as x or residual.

        The same key gives the same mask, so the backward pass is the same call.
        """

    def attention_forward(self, y: Array, lse: Array, q: Array, k: Array, v: Array, rope: Rope | None = None) -> None:
        """Causal attention: y, q [B, Tq, NH, hs] of the last Tq of T tokens; k, v [B, T, NKV, hs]; lse [B, NH, Tq].

        With rope, attention sees q and k rotated (Tq = T then). Whether q and k in memory are rotated afterwards is the
        backend's choice; `attention_backward` takes q and k as the forward pass left them.
        """

    def attention_backward(
        self, dq: Array, dk: Array, dv: Array, dy: Array, q: Array, k: Array, v: Array, y: Array, lse: Array,
        rope: Rope | None = None,
    ) -> None:  # fmt: skip
        """Gradients for all T tokens; dq, dk, dv may be the same arrays as q, k, v.

        With the rope of the forward pass, dq and dk are the gradients of q and k before the rotation.
        """

    def classifier_forward(self, losses: Array, x: Array, w: Any, targets: Array, logits: Array) -> None:
        """losses [N] of the head w [V, C] for x [N, C]; logits [R, V] is scratch for R rows at a time.

        A row whose target is -1 has the loss 0 and no gradient.
        """

    def classifier_backward(
        self, losses: Array, dx: Array, dw: Array, x: Array, w: Any, targets: Array, scale: float, logits: Array,
        accumulate: bool = True,
    ) -> None:  # fmt: skip
        """The losses, and the gradients of scale * sum(losses), in one pass that computes the logits once."""

    def adamw(
        self, p: Array, g: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
        weight_decay: float, step: int, grad_scale: Any, weight: Any = None, rounding: int = 0,
    ) -> None:  # fmt: skip
        """One AdamW step over flat [n]; step counts from 1; grad_scale multiplies g (clipping).

        With a weight, p, g, m and v are [OC, C], and the weight becomes p as `pack_weight` packs it.
        """

    def global_norm(self, g: Array) -> float:
        """The L2 norm of g [n]"""

    # ---- bfloat16 weights of linear layers -------------------------------------------------------------------------

    PRECISIONS: tuple[str, ...]  # the precisions that the operations compute in

    def bfloat16_is_faster(self) -> bool:
        """Whether this machine multiplies bfloat16 faster than float32."""

    def weight_size(self, OC: int, C: int) -> int:
        """The number of bfloat16 elements that a Weight [OC, C] takes."""

    def Weight(self, numbers: Array, OC: int, C: int) -> Any:  # noqa: N802
        """A weight [OC, C] in `numbers`, bfloat16 [weight_size(OC, C)], laid out for this machine's matmuls."""

    def pack_weight(self, weight: Any, w: Array, rounding: int = 0) -> None:
        """Packs float32 w [OC, C] into the weight, rounded to nearest; or stochastically, with the seed `rounding`."""

    # ---- generation ------------------------------------------------------------------------------------------------

    def Decode(  # noqa: N802
        self, config: ModelConfig, weights: StoredWeights, keys: Array, values: Array, cos: Array | None = None,
        sin: Array | None = None,
    ) -> Decoding:  # fmt: skip
        """Decodes with a model's weights over a KV cache; keys and values [L, slots, T, NKV, hs].

        In memory, the T rows of a head lie together. cos, sin [T, hs/2] of every position, for a Llama.
        """

    def embed_rows(self, x: Array, weights: StoredWeights, tokens: Array, positions: Array) -> None:
        """x [T, C] = the embeddings of tokens int32 [T] at positions int32 [T], both on the host."""

    def upload_weights(self, weights: StoredWeights) -> StoredWeights:
        """The weights in the memory of the backend; the same object where they are there already."""

    def matrix_of(self, array: Array) -> Any:
        """An array [OC, C] of the backend as a matrix of StoredWeights, without a copy."""

    # ---- memory ----------------------------------------------------------------------------------------------------

    device: ModuleType | None  # the module that drives a device with a memory of its own; None: the host's memory
    LOGITS_ROWS: int  # rows of logits that exist at a time in training

    def padded_width(self, V: int) -> int:
        """Columns of the scratch for V logits in training."""

    def take(self, plan: MemoryPlan, advice: str = ...) -> dict[str, Any]:
        """Allocates all arrays of a plan, zeroed. Raises UserError, before anything is allocated, if memory is short.

        `advice` tells the user how to need less memory.
        """

    def headroom(self) -> int | None:
        """Bytes that a plan may take; None where the system does not say."""

    def empty(self, *shape: Any, dtype: Any = ...) -> Array:
        """A new array with arbitrary contents, float32 unless `dtype` says otherwise."""

    def copy(self, to: Array, source: Array) -> None:
        """Copies between views of the same shape, which may overlap."""

    def mean(self, y: Array, x: Array) -> None:
        """y [1] = the mean of x, any shape, summed in float64."""

    # ---- the machine -----------------------------------------------------------------------------------------------

    def open_device(self, precision: str) -> None:
        """Opens the device. Raises UserError if the device does not compute in this precision."""

    def device_name(self) -> str | None:
        """The name of a device with a memory of its own; None for the CPU."""

    def peak_flops(self, precision: str) -> float | None:
        """The highest FLOP/s of the device in this precision; None if unknown."""

    def set_threads(self, n: int | None = None) -> int:
        """Sets the number of threads (None: the physical cores) and returns it. Raises UserError for too many."""

    def set_gemm(self, name: str) -> None:
        """Chooses the GEMM of a GPU: auto, cublaslt or triton. Raises UserError for another one, or without a GPU."""

    def tuning(self, timer: Callable[[Callable[[], None]], float] | None = None) -> AbstractContextManager[None]:
        """A context in which every matmul is timed with all GEMM candidates; the fastest is remembered.

        timer(run) returns the seconds that a candidate takes; None for the clock of the device.
        """

    def notice(self) -> str | None:
        """A message that the user should see once, such as an instruction set that may not be used."""

    def compile_all(self, report: Callable[[int, int, str], None] | None = None, precision: str = "float32") -> None:
        """Compiles every kernel of a precision, or loads compiled ones; calls report(done, total, name) before each."""

    def shown(self) -> AbstractContextManager[None]:
        """A context that shows a progress bar while kernels are compiled at their first call."""
