"""The parts of training that all families share: loss, dropout, memory and the view of the optimizer.

A model of a family fills in the parts: its embedding, its blocks, its norm. The memory they need, the order in which
they run forward and backward, the loss, and dropout are the same for all, and are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Generic, Self, SupportsFloat, TypeVar

import numpy as np

from llmpy import kernels
from llmpy.errors import UserError
from llmpy.models.bf16_weights import BFloat16Weights, plan_weights
from llmpy.models.config import ModelConfig
from llmpy.models.graph_step import DeviceStep, plan_batch
from llmpy.models.parameters import Parameters, initialize, total_size
from llmpy.models.precision import dtype
from llmpy.utils.memory import MemoryPlan
from llmpy.utils.rng import hash64

Config = TypeVar("Config", bound=ModelConfig)
Weights = Parameters | BFloat16Weights


def plan_parameters(config: ModelConfig, training: bool) -> MemoryPlan:
    """Parameters, and for training their gradients and AdamW's two moments."""
    plan, size = MemoryPlan(), total_size(config.parameter_table())
    plan.add("parameters", "parameters", size)
    if training:
        plan.add("gradients", "gradients", size)
        plan.add("optimizer", "m", size)
        plan.add("optimizer", "v", size)
    return plan


class Transformer(ABC, Generic[Config]):
    """A model with its parameters and, where B and T are given, all that training it takes.

    `recompute` trades time for memory: 0 keeps all that backward reads; 1 recomputes the widest activations that
    are cheap to compute;
    2 keeps the residual stream alone and recomputes each block.

    `precision` is that of the computation, float32 or bfloat16 (then whoever changes the parameters other than through
    the optimizer calls `pack_weights`). `stochastic_rounding`, with its seed: see BFloat16Weights. `dropout` is the
    share of what the embedding and each half of a block give that is dropped in training.
    """

    def __init__(
        self,
        config: Config,
        backend: str = "cpu",
        batch_size: int | None = None,
        sequence_length: int | None = None,
        recompute: int = 0,
        precision: str = "float32",
        stochastic_rounding: bool = False,
        seed: int = 0,
        dropout: float = 0.0,
    ) -> None:
        self.config, self.kernels, self.precision = config, kernels.load(backend), precision
        B, T = batch_size, sequence_length or config.context
        if T > config.context:
            raise UserError(f"a sequence length of {T} is more than the model's context of {config.context}: lower it")
        if recompute not in (0, 1, 2):
            raise UserError(f"recompute is 0, 1 or 2, not {recompute}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must be at least 0 and less than 1, not {dropout}")
        self.batch_size, self.sequence_length, self.recompute, self.dropout = B, T, recompute, dropout
        self._dropout_key: int | None = None  # of the batch that is being learned; None: nothing is dropped
        if B is None:
            self.memory = plan_parameters(config, training=False)
        else:
            self.memory = self.plan_training(config, B, T, recompute, precision, backend)
        self.arrays: dict[str, Any] = self.kernels.take(self.memory)
        table = config.parameter_table()
        self.parameters = Parameters(table, self.arrays["parameters"])
        self.weights: Weights = self.parameters  # what the products read
        self._step: DeviceStep | None = None
        if B is not None:
            self.gradients = Parameters(table, self.arrays["gradients"])
            if self.kernels.device is not None:
                self._step = DeviceStep(self.kernels, self.arrays)
            if precision == "bfloat16":
                self.weights = BFloat16Weights(self.kernels, self.parameters, self.arrays, stochastic_rounding, seed)
            self._begin()

    def tune(self) -> None:
        """Autotunes every GEMM of training on a GPU, once on a machine. Call `tune` before there are
        parameters, for what is in the arrays afterwards means nothing."""
        if self._step is not None:
            self._step.tune(partial(self._learn, micro_steps=1, accumulate=True, dropout_key=None))

    def initialize(self, seed: int = 42) -> Self:
        """Initial values as the table of parameters says, drawn as PyTorch draws them for this seed."""
        with self.parameters.on_host() as parameters:
            initialize(parameters, seed)
        self.pack_weights()
        return self

    def pack_weights(self, step: int = 0) -> None:
        """After a change of the parameters: the bfloat16 copy, where there is one, as it is after so many steps."""
        if isinstance(self.weights, BFloat16Weights):
            self.weights.pack(step)

    @classmethod
    def plan_training(
        cls, config: Config, B: int, T: int, recompute: int, precision: str = "float32", backend: str = "cpu"
    ) -> MemoryPlan:
        """Plans the memory that training takes."""
        plan, module = plan_parameters(config, training=True), kernels.load(backend)
        if precision == "bfloat16":
            plan_weights(plan, module, config.parameter_table())
        cls.plan_activations(plan, config, B, T, recompute, precision)
        on_device = module.device is not None
        if on_device:
            plan_batch(plan, B, T)
        rows, width = min(B * T, module.LOGITS_ROWS), module.padded_width(config.vocab_size)
        plan.add("logits", "logits", rows, width, dtype=dtype(precision if on_device else "float32"))
        return plan

    # ---- the parts of a family -------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def plan_activations(
        plan: MemoryPlan, config: Config, B: int, T: int, recompute: int, precision: str = "float32"
    ) -> None:
        """Add what a forward and backward pass over B sequences of T tokens needs, `residual`, `dresidual` and `losses`
        among it."""

    def _begin(self) -> None:
        """Fills in those of the arrays that stay the same for every batch."""

    @abstractmethod
    def _only_added_to(self) -> set[str]:
        """Matrices whose gradient is only accumulated (+=), so it must be zeroed before a step: embeddings that are
        not the head."""

    @abstractmethod
    def _embed(self, tokens: np.ndarray) -> None:
        """tokens [B, T] -> residual[0]"""

    @abstractmethod
    def _embed_backward(self, tokens: np.ndarray) -> None:
        """dresidual, by residual[0], -> the gradients of the embeddings, added to"""

    @abstractmethod
    def _block_forward(self, layer: int) -> None:
        """residual[layer] -> residual[layer + 1]"""

    @abstractmethod
    def _block_backward(self, layer: int, accumulate: bool) -> None:
        """dresidual, the gradient by residual[layer + 1], becomes the one by residual[layer]."""

    @abstractmethod
    def _last_norm(self) -> np.ndarray:
        """The last residual, normalised, [N, C]: what the head reads."""

    @abstractmethod
    def _last_norm_backward(self, dx: np.ndarray) -> None:
        """dx [N, C], by what `_last_norm` gave, -> dresidual, by the last residual, added to"""

    @abstractmethod
    def _dx(self) -> np.ndarray:
        """[N, C], free between the head and the last block"""

    @staticmethod
    @abstractmethod
    def head(config: Config, weights: Weights) -> Any:
        """The weight of the head as products read it, or its gradient, [V, C]"""

    # ---- the whole model -------------------------------------------------------------------------------------------

    def forward(self, tokens: np.ndarray, dropout_key: int | None = None) -> np.ndarray:
        """tokens int32 [B, T] -> the normalised last residual [B*T, C], of which the head makes logits.

        With `dropout_key` (any int of 64 bits), numbers are dropped: which ones depends on the key alone.
        """
        if tokens.shape != (self.batch_size, self.sequence_length):
            raise ValueError(
                f"tokens are {tokens.shape}, the model was made for {(self.batch_size, self.sequence_length)}"
            )
        self._dropout_key = dropout_key if self.dropout else None
        self._embed(tokens)
        if self._dropout_key is not None:
            x = self.arrays["residual"][0]
            self.kernels.dropout(x, x, self.dropout, hash64(self._dropout_key, 0))
        for layer in range(self.config.layers):
            self._block_forward(layer)
        return self._last_norm()

    def loss(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """tokens, targets int32 [B, T] -> the mean cross-entropy in nats; nothing is dropped."""
        if self._step is not None:
            return float(self._step.run("loss", self._forward_and_loss, tokens, targets))
        self._forward_and_loss(tokens, targets)
        return float(self.arrays["losses"].mean(dtype=np.float64))

    def _forward_and_loss(self, tokens: np.ndarray, targets: np.ndarray) -> None:
        """tokens, targets [B, T] -> losses"""
        x, head = self.forward(tokens), self.head(self.config, self.weights)
        self.kernels.classifier_forward(self.arrays["losses"], x, head, targets.reshape(-1), self._logits())

    def loss_and_gradients(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        micro_steps: int = 1,
        accumulate: bool = False,
        dropout_key: int = 0,
    ) -> SupportsFloat:
        """The loss, and the gradients of loss / micro_steps in `self.gradients`, written or, `accumulate`, added.

        `dropout_key` should be another for every batch where the model has dropout. The loss of a device is pending,
        and float() waits for it: a step asks for all its batches before it asks for a loss.
        """
        key = dropout_key if self.dropout else None
        learn = partial(self._learn, micro_steps=micro_steps, accumulate=accumulate, dropout_key=key)
        if self._step is not None:
            kind = (micro_steps, accumulate) if key is None else None  # which numbers are dropped is another each time
            return self._step.run(kind, learn, tokens, targets)
        learn(tokens, targets)
        return float(self.arrays["losses"].mean(dtype=np.float64))

    def _learn(
        self, tokens: np.ndarray, targets: np.ndarray, micro_steps: int, accumulate: bool, dropout_key: int | None
    ) -> None:
        """tokens, targets [B, T] -> losses, and the gradients"""
        K, a, g = self.kernels, self.arrays, self.gradients
        if not accumulate:
            only_added_to = self._only_added_to()
            for spec, view in g.items():
                if spec.name in only_added_to or not spec.decay:  # what linear_backward and the head do not write
                    view.fill(0)
        x, losses, dx = self.forward(tokens, dropout_key), a["losses"], self._dx()
        head, dhead = self.head(self.config, self.weights), self.head(self.config, g)
        scale, targets = 1 / (tokens.size * micro_steps), targets.reshape(-1)
        K.classifier_backward(losses, dx, dhead, x, head, targets, scale, self._logits(), accumulate)
        dresidual = a["dresidual"]
        dresidual.fill(0)
        self._last_norm_backward(dx)
        for layer in reversed(range(self.config.layers)):
            self._block_backward(layer, accumulate)
        if self._dropout_key is not None:
            K.dropout(dresidual, dresidual, self.dropout, hash64(self._dropout_key, 0))
        self._embed_backward(tokens)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """tokens int32 [B, T] -> logits [B, T, V], a new array: for tests and evaluation of small batches."""
        x = self.forward(tokens if self._step is None else self._step.place(tokens)[0])
        logits = self.kernels.empty(len(x), self.config.vocab_size)
        self.kernels.linear_forward(logits, x, self.head(self.config, self.weights))
        return np.asarray(logits).reshape(*tokens.shape, -1)

    def _logits(self) -> np.ndarray:
        """Scratch for the classifier [rows, V]; where a device likes them wider, the columns that count."""
        return self.arrays["logits"][:, : self.config.vocab_size]

    # ---- what blocks are made of -----------------------------------------------------------------------------------

    def _add_to_residual(
        self, y: np.ndarray, x: np.ndarray, w: Any, b: np.ndarray | None, residual: np.ndarray, place: int
    ) -> None:
        """y = residual + dropout(x w^T + b). `place` counts the additions: 2 * layer + 1, 2 * layer + 2."""
        if self._dropout_key is None:
            self.kernels.linear_forward(y, x, w, b, residual=residual)
            return
        self.kernels.linear_forward(y, x, w, b)
        self.kernels.dropout(y, y, self.dropout, hash64(self._dropout_key, place), residual=residual)

    def _of_addition(self, space: np.ndarray, place: int) -> np.ndarray:
        """The gradient by what was added to the residual stream at `place`: dresidual, or, in `space`, what dropout
        leaves of it."""
        dresidual = self.arrays["dresidual"]
        if self._dropout_key is None:
            return dresidual
        self.kernels.dropout(space, dresidual, self.dropout, hash64(self._dropout_key, place))
        return space


Model = Transformer[Any]  # a model of any family
