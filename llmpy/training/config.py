"""Every setting of a training run in one table: flags, checks and `config.toml` all follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from llmpy.errors import UserError
from llmpy.kernels import backend_of, is_device
from llmpy.models.precision import CHOICES, SHORT, full_name
from llmpy.models.presets import SHAPE, family_of_descriptor, is_descriptor

BATCHES = ("stream", "windows", "documents")
SCHEDULES = ("cosine", "linear", "constant", "wsd")


def _setting(
    section: str,
    default: Any,
    help: str,
    short: str | None = None,
    *,
    metavar: str | None = None,
    low: float | None = None,
    high: float | None = None,
    also: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A field and what is known of it: `short` is llm.c's flag; low <= value <= high, or `also`; one of `choices`."""
    limits = {"low": low, "high": high, "also": also, "choices": choices}
    metadata = {"section": section, "help": help, "short": short, "metavar": metavar, **limits}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run. None means that the run chooses the value; `config.toml` records the choice.

    Raises UserError for a value that cannot be.
    """

    data: str = _setting(
        "data",
        "python-docs",
        "training data: python-docs (the manual inside Python), shakespeare, tinystories, a file, folder or glob of "
        ".txt, .md or .jsonl, or shards of tokens (.bin)",
        "-i",
        metavar="DATA",
    )
    val_data: str | None = _setting(
        "data", None, "validation data (default: a held-out part of the training data)", "-j", metavar="DATA"
    )
    val_fraction: float | None = _setting(
        "data", None, "how much of a text is held out for validation (default: 0.1, less of more than 50 MB)", high=1
    )
    tokenizer: str | None = _setting(
        "data",
        None,
        "bytes, gpt2, llama2, bpe:N or sentencepiece:N (N tokens, trained on the text as GPT-2 or Llama have them), a "
        "tokenizer's file, or a model's folder or name (default: that of --init or the shards, else bpe:3072, for a "
        "Llama sentencepiece:3072)",
        metavar="KIND",
    )

    model: str | None = _setting(
        "model",
        None,
        "a shape: d12, gpt3:c768, llama:15M; llama alone, or none for a GPT-2, is given its shape by the flags below, "
        "which go over a named one's, too; or a model, as in --init",
        "-e",
        metavar="SHAPE",
    )
    init: str | None = _setting(
        "model",
        None,
        "a model to start from: a run folder, a Hugging Face folder or name, a .bin of llm.c or llama2.c, a GGUF, a "
        "ckpt.pt; it brings its shape and its tokenizer",
        metavar="MODEL",
    )
    layers: int | None = _setting("model", None, "blocks of the model", low=1)
    heads: int | None = _setting("model", None, "attention heads of a block", low=1)
    kv_heads: int | None = _setting(
        "model", None, "heads of keys and values that groups of a Llama's heads share (default: all their own)", low=1
    )
    channels: int | None = _setting("model", None, "width of the residual stream", low=1)
    hidden: int | None = _setting("model", None, "width of a Llama's MLP (default: 8/3 of the channels)", low=1)
    vocab_size: int | None = _setting(
        "model", None, "tokens that the model knows, and a tokenizer is trained to (default: the tokenizer's)", low=1
    )

    batch_size: int = _setting("batch", 8, "sequences computed at a time", "-b", low=1)
    sequence_length: int = _setting("batch", 128, "tokens of a sequence", "-t", low=1)
    batches: str | None = _setting(
        "batch",
        None,
        "what a batch is cut from: stream, all its tokens in a row, as llm.c does; windows, each sequence from another "
        "place, as llama2.c does; documents, each from where a document begins (default: stream, for a Llama windows)",
        choices=BATCHES,
    )
    total_batch_tokens: int = _setting(
        "batch", -1, "tokens to a step, made of as many batches as it takes; -1: one batch", "-d", low=1, also=-1
    )

    steps: int = _setting("optimizer", 1100, "steps to train; -1: once through the data", "-x", low=1, also=-1)
    lr: float | None = _setting(
        "optimizer", None, "highest learning rate (default: chosen by the width of the model)", "-l", low=0
    )
    schedule: str = _setting(
        "optimizer", "cosine", "schedule of the learning rate after the warm-up", "-k", choices=SCHEDULES
    )
    warmup: int | None = _setting(
        "optimizer",
        None,
        "steps of warm-up, in which the learning rate rises (default: a twentieth of --steps)",
        "-u",
        low=0,
    )
    final_lr_fraction: float = _setting(
        "optimizer", 0.0, "learning rate at the end, as a fraction", "-q", low=0, high=1
    )
    weight_decay: float = _setting("optimizer", 0.1, "weight decay of the weight matrices", "-c", low=0)
    beta1: float = _setting("optimizer", 0.9, "AdamW beta1: decay of the first moment", low=0, high=0.999999)
    beta2: float = _setting("optimizer", 0.95, "AdamW beta2: decay of the second moment", low=0, high=0.999999)
    clip: float = _setting("optimizer", 1.0, "clip the gradient to this norm; 0: no clipping", low=0)
    skip_loss_z: float = _setting(
        "optimizer",
        0.0,
        "skip a step if the z-score of its loss in the last 128 steps is higher; 0: never skip",
        "-sl",
        low=0,
    )
    skip_norm_z: float = _setting(
        "optimizer", 0.0, "skip a step if the z-score of its gradient norm is higher; 0: never skip", "-sg", low=0
    )
    dropout: float = _setting(
        "optimizer", 0.0, "dropout probability: fraction of elements set to 0 in a training step", low=0, high=0.99
    )
    overfit: bool = _setting("optimizer", False, "train on the first batch again and again, to see it learned", "-a")
    seed: int = _setting(
        "optimizer", 42, "random seed of the initial parameters and the order of the data", low=0, high=2**32 - 1
    )

    eval_every: int = _setting("evaluation", 100, "validate every N steps and at the end; 0: never", "-v", low=0)
    eval_batches: int = _setting("evaluation", 20, "batches to validate on, at most; -1: all", "-m", low=1, also=-1)
    sample_every: int | None = _setting(
        "evaluation",
        None,
        "generate a sample every N steps and at the end; 0: never (default: at the end)",
        "-s",
        low=0,
    )
    sample_tokens: int = _setting("evaluation", 200, "tokens of a sample", "-g", low=1)
    sample_prompt: str = _setting("evaluation", "", "prompt of the sample", metavar="TEXT")
    log_every: int = _setting(
        "evaluation", 0, "print every N-th step; 0: one line in two seconds; -1: none", low=0, also=-1
    )

    checkpoint_every: int = _setting(
        "checkpoints", 100, "save every N steps and at the end; 0: at the end", "-n", low=0
    )
    keep: int = _setting("checkpoints", 2, "number of newest checkpoints to keep; 0: all", "-nk", low=0)
    major_every: int = _setting(
        "checkpoints", 0, "keep the checkpoint of every N-th step forever; 0: none", "-nm", low=0
    )

    precision: str = _setting(
        "machine",
        "auto",
        "dtype of the computation: float32 (fp32), bfloat16 (bf16), or auto: bfloat16 if the processor computes it "
        "faster",
        choices=(*CHOICES, *SHORT),
        metavar="NAME",
    )
    stochastic_rounding: bool = _setting(
        "machine", False, "round the bfloat16 weights up or down at random, so that the mean is exact"
    )
    device: str = _setting(
        "machine",
        "auto",
        "device: auto (an NVIDIA GPU if this machine has a usable one, else the CPU), cpu, cuda, cuda:1 "
        "for the second GPU, or reference, which is slow NumPy",
        metavar="NAME",
    )
    threads: int | None = _setting("machine", None, "threads to compute with (default: the physical cores)", low=1)
    gemm: str = _setting(
        "machine",
        "auto",
        "GEMM on a GPU: cublas (NVIDIA's library), triton (the kernels of this project), or auto (the faster one)",
        choices=("auto", "cublas", "triton"),
    )
    recompute: int = _setting(
        "machine",
        0,
        "save memory at the cost of time: 1 recomputes the MLP's activation in the backward pass, 2 whole blocks",
        "-r",
        choices=(0, 1, 2),
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            checked = _check(setting, getattr(self, setting.name))
            object.__setattr__(self, setting.name, checked)  # 1 given for a float is 1.0
        object.__setattr__(self, "precision", full_name(self.precision))
        if not is_device(self.device):
            raise UserError(f"--device is auto, cpu, cuda, cuda:N or reference, not {self.device}")
        self._check_model()
        tokens, batch = self.total_batch_tokens, self.batch_size * self.sequence_length
        if tokens != -1 and tokens % batch:
            fits = max(tokens // batch, 1) * batch
            raise UserError(
                f"{flag('total_batch_tokens')} {tokens} is no multiple of {self.batch_size} sequences of "
                f"{self.sequence_length} tokens ({batch}): give {fits}, or change the batch"
            )

    def _check_model(self) -> None:
        """A shape or a model to start from, and only what goes with it."""
        for name, value in with_init({"model": self.model, "init": self.init}).items():
            object.__setattr__(self, name, value)
        given = [name for name in ("model", *SHAPE, "vocab_size") if getattr(self, name) is not None]
        if self.init is not None and given:
            raise UserError(f"{flag('init')} {self.init} has a shape: leave out {flag(given[0])}")
        for name in ("kv_heads", "hidden"):
            if getattr(self, name) is not None and name not in family_of_descriptor(self.model).sizes:
                raise UserError(f"{flag(name)} is a size of Llamas: add --model llama, or leave it out")

    @property
    def sizes(self) -> dict[str, int]:
        """The given settings among SHAPE, by name."""
        return {name: size for name in SHAPE if (size := getattr(self, name)) is not None}

    @property
    def micro_steps(self) -> int:
        """The number of batches whose gradients a step accumulates."""
        return max(self.total_batch_tokens // (self.batch_size * self.sequence_length), 1)

    @property
    def step_tokens(self) -> int:
        return self.micro_steps * self.batch_size * self.sequence_length

    @property
    def backend(self) -> str:
        return backend_of(self.device)


@cache
def setting_types() -> dict[str, tuple[type, bool]]:
    """Returns for every setting its type and whether None is allowed."""
    types = {}
    for name, hint in get_type_hints(TrainConfig).items():
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        types[name] = (kinds[0], len(get_args(hint)) > 1)
    return types


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check(setting: Field[Any], given: Any) -> Any:
    """The value, if it can be. Raises UserError saying what would do."""
    (kind, optional), limits = setting_types()[setting.name], setting.metadata
    value: Any = given
    if value is None and optional:
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise UserError(f"{flag(setting.name)} must be {words[kind]}, not {value!r}")
    if kind is str and not value and setting.name != "sample_prompt":
        raise UserError(f"{flag(setting.name)} is empty: give a value, or leave it out")
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(f"{flag(setting.name)} is one of {', '.join(map(str, limits['choices']))}, not {value}")
    if kind in (int, float) and value != limits["also"]:
        _check_range(setting.name, value, limits["low"], limits["high"], limits["also"])
    return value


def _check_range(name: str, value: Any, low: float | None, high: float | None, also: float | None) -> None:
    ends = [f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else ""]
    too_low, too_high = low is not None and value < low, high is not None and value > high
    if too_low or too_high or not math.isfinite(value):
        wanted = " and ".join(end for end in ends if end) or "finite"
        raise UserError(f"{flag(name)} must be {wanted}{f' (or {also})' if also is not None else ''}, not {value}")
    if abs(value) >= 2**63:
        raise UserError(f"{flag(name)} is too large: {value}")


def from_settings(settings: Mapping[str, Any], where: str = "") -> TrainConfig:
    """A config of these settings. Raises UserError, beginning with `where` they come from, if one cannot be."""
    try:
        return TrainConfig(**settings)
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error


def with_init(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with a --model that is no shape where it belongs: llm.c's -e takes either."""
    model = settings.get("model")
    if not isinstance(model, str) or is_descriptor(model) or settings.get("init") is not None:
        return dict(settings)
    return {**settings, "model": None, "init": model}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top. A model that `over` names takes the place of all that `base` says of a model; sizes go
    over those of a named shape, and take the place of a model to start from."""
    result, over = with_init(base), with_init(over)
    if over.get("model") is not None or over.get("init") is not None:
        result |= dict.fromkeys(("model", "init", *SHAPE, "vocab_size"))
    elif any(over.get(name) for name in SHAPE):
        result["init"] = None
    return result | over


def as_settings(config: TrainConfig) -> dict[str, Any]:
    return asdict(config)
