"""Builds dataset, tokenizer, model and buffers from a TrainConfig; raises UserError if they are incompatible."""

from __future__ import annotations

import bisect
import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llmpy import kernels
from llmpy.data.corpora import NAMES
from llmpy.data.dataloader import DataLoader
from llmpy.errors import UserError
from llmpy.formats.chat_template_files import StoredTemplate, template_of
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.load import LoadedModel, load_model
from llmpy.formats.tensor_map import in_memory_interleaved, parts
from llmpy.models.config import ModelConfig
from llmpy.models.precision import resolve
from llmpy.models.presets import SHAPE, shape_of
from llmpy.models.registry import family_of, new_model, plan_training
from llmpy.models.transformer import Model, plan_parameters
from llmpy.tokenization.base import NAMES as TOKENIZER_NAMES
from llmpy.tokenization.base import Tokenizer
from llmpy.training import checkpoint
from llmpy.training.config import TrainConfig, as_settings, flag, from_settings, merged, with_init
from llmpy.training.config_file import read_toml
from llmpy.training.dataset import TokenData, open_data, validation_loader
from llmpy.training.lr_schedule import default_learning_rate

PADDED = 1.05  # the largest part of a vocabulary that padding makes it: Qwen's and Phi's are padded by far less


# Settings that a resumed run must keep: a change of one of them makes another run.
FIXED = ("data", "val_fraction", "tokenizer", "model", "init", *SHAPE, "vocab_size", "batch_size", "sequence_length",
         "batches", "total_batch_tokens", "overfit", "seed", "precision", "stochastic_rounding")  # fmt: skip


@dataclass
class Assembly:
    """The parts of a run. `config` has a value for every setting; `val` is None without validation data.

    `chat_template` comes from the model to start from.
    """

    config: TrainConfig
    model: Model
    train: DataLoader
    val: DataLoader | None
    tokenizer: Tokenizer | None
    fingerprint: list[str]
    chat_template: StoredTemplate | None


def assemble(config: TrainConfig, checkpoint: Path | None = None) -> Assembly:
    """Builds everything that `config` needs, the cheapest part first; raises UserError if parts are incompatible.

    A resumed run takes its shape from `checkpoint`, and the caller reads the parameters.
    """
    config = with_absolute_paths(config)
    initial = None
    if checkpoint is None and config.init is not None:
        initial = load_model(config.init)
    elif checkpoint is None:
        shape_of(config.model, **config.sizes)  # an impossible shape is an error before the data is read
    data = open_data(config, initial)
    shape = huggingface.read_config(checkpoint) if checkpoint else _shape(config, data, initial)
    B, T = config.batch_size, config.sequence_length
    if T > shape.context:
        raise UserError(f"--sequence-length {T} is more than the model's context: give at most {shape.context}")
    batches = config.batches or family_of(shape).batches
    config = replace(config, precision=resolve(config.precision, config.backend), batches=batches)
    V = data.vocab_size
    separator = data.tokenizer.end_of_text if data.tokenizer else None
    train = DataLoader(
        data.train, B, T, shuffle=not config.overfit, seed=config.seed, vocab_size=V, batches=batches,
        separator=separator,
    )  # fmt: skip
    val = validation_loader(data.val, B, T, V)
    check_memory(shape, config)
    module = kernels.start(config.backend, config.threads, config.precision)
    module.set_gemm(config.gemm)
    model = new_model(
        shape, config.backend, B, T, config.recompute, config.precision, config.stochastic_rounding, config.seed,
        config.dropout,
    )  # fmt: skip
    model.tune()
    if initial is None and checkpoint is None:
        model.initialize(config.seed)
    elif initial is not None:
        with model.parameters.on_host() as parameters:
            for part in parts(shape):
                part.fill(parameters, shape, part.of(initial.parameters), in_memory_interleaved(initial.config))
        model.pack_weights()
    # A model that is trained further keeps its chat template.
    template = template_of(initial.source, initial.tokenizer_source) if initial else None
    filled_in = _filled_in(config, shape, train, data)
    return Assembly(filled_in, model, train, val, data.tokenizer, data.fingerprint, template)


def _filled_in(config: TrainConfig, shape: ModelConfig, train: DataLoader, data: TokenData) -> TrainConfig:
    """Returns the config with a value for every setting that was None."""
    steps = config.steps if config.steps != -1 else train.batches_per_epoch // config.micro_steps
    if steps < 1:
        raise UserError(
            f"once through the data is less than one step: {train.tokens} tokens, and a step takes "
            f"{config.step_tokens}: give --steps, or lower --total-batch-tokens"
        )
    if not config.model and not config.init:
        config = replace(config, layers=shape.layers, heads=shape.heads, channels=shape.channels)
    return replace(
        config,
        steps=steps,
        tokenizer=data.tokenizer_spec,
        lr=config.lr if config.lr is not None else default_learning_rate(shape.channels),
        warmup=config.warmup if config.warmup is not None else max(steps // 20, 1),
    )


# ---- names and places ----------------------------------------------------------------------------------------------


def resumed_config(out: Path, changes: Mapping[str, Any]) -> TrainConfig:
    """Returns the config of the run in `out` with `changes`; raises UserError for a change that makes another run."""
    path = out / checkpoint.CONFIG
    saved = from_settings(read_toml(path, sealed=True), str(path))
    given = with_init(changes)
    if given.get("precision") == "auto":  # keep the saved precision
        del given["precision"]
    wanted = with_absolute_paths(from_settings(merged(as_settings(saved), given)))
    for name in FIXED:
        before, now = getattr(saved, name), getattr(wanted, name)
        if name in given and now != before:
            words = f"without {flag(name)}" if before is None else f"with {flag(name)} {before}"
            raise UserError(
                f"the run in {out} was started {words}, and {flag(name)} {now} would make it another: leave it out"
            )
    kept = as_settings(saved) | {name: value for name, value in as_settings(wanted).items() if name not in FIXED}
    if os.path.isabs(kept["tokenizer"] or "") and (own := out / checkpoint.TOKENIZER).exists():
        kept["tokenizer"] = os.path.abspath(own)  # the original file may no longer exist
    return from_settings(kept)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Returns the config with absolute paths, so that a run can resume from any folder; names of corpora stay names."""

    def absolute(value: str | None) -> str | None:
        if value is None or value in NAMES or value in TOKENIZER_NAMES:
            return value
        path = os.path.expanduser(value)
        return os.path.abspath(path) if os.path.exists(path) or glob.has_magic(value) else value

    return replace(
        config,
        data=absolute(config.data) or config.data,
        val_data=absolute(config.val_data),
        tokenizer=absolute(config.tokenizer),
        init=absolute(config.init),
    )


# ---- the model -----------------------------------------------------------------------------------------------------


def _shape(config: TrainConfig, data: TokenData, initial: LoadedModel | None) -> ModelConfig:
    V, name = data.vocab_size, config.tokenizer or data.tokenizer_spec
    if initial is not None:
        known, own = initial.config.vocab_size, str(initial.tokenizer_source)
        # A model may know more tokens than its tokenizer has, of which the last are padding.
        if V > known or (name != own and V * PADDED + 128 < known):
            own_one = "" if initial.tokenizer_source is None else f", {own}"
            raise UserError(
                f"the tokenizer {name} has {V} tokens, and {config.init} knows {known}: use the --tokenizer that it "
                f"was made with{own_one}"
            )
        return _as_in_checkpoints(initial.config)
    if config.vocab_size is not None and config.vocab_size < V:
        raise UserError(f"--vocab-size {config.vocab_size}: {name} has {V} tokens: give that many or more")
    return _as_in_checkpoints(shape_of(config.model, config.vocab_size or V, config.sequence_length, **config.sizes))


def _as_in_checkpoints(shape: ModelConfig) -> ModelConfig:
    """Returns the shape with RoPE channels in Hugging Face's order, which the checkpoints have."""
    return shape.with_rope_interleaved(False)


def check_memory(shape: ModelConfig, config: TrainConfig) -> None:
    """Raises UserError if a run needs more memory than is free, before it allocates; the message says what fits."""
    room = kernels.load(config.backend).headroom()
    if room is None:
        return

    def needed(batch_size: int, recompute: int) -> int:
        T, precision = config.sequence_length, config.precision
        return plan_training(shape, batch_size, T, recompute, precision, config.backend).bytes

    if (wanted := needed(config.batch_size, config.recompute)) <= room:
        return
    for recompute in range(config.recompute, 3):
        batches = range(1, config.batch_size + 1)
        if fits := bisect.bisect_right(batches, room, key=partial(needed, recompute=recompute)):
            more = f" with --recompute {recompute}" if recompute != config.recompute else ""
            way = f"--batch-size {fits}{more} would fit"
            break
    else:
        smallest = plan_parameters(shape, training=True).bytes / 1e9
        way = f"the model alone takes {smallest:.1f} GB, so choose a smaller one or a shorter --sequence-length"
    device = kernels.load(config.backend).device_name()
    raise UserError(
        f"--batch-size {config.batch_size} of {config.sequence_length} tokens needs {wanted / 1e9:.1f} GB of memory"
        f"{f' on the {device}' if device else ''}, and {room / 1e9:.1f} GB are free: {way}"
    )
