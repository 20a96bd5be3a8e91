"""From settings to all that a run needs: data, tokenizer, model, memory. What does not fit is said here."""

from __future__ import annotations

import bisect
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llmpy import kernels
from llmpy.data.corpora import NAMES
from llmpy.data.dataloader import DataLoader
from llmpy.data.prepare import DEFAULT_VOCABULARY, check_seals, prepare
from llmpy.errors import UserError
from llmpy.formats.chat_template_files import StoredTemplate, template_of
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface.hub import TOKENIZER
from llmpy.formats.llmc.shards import dtype_for, is_shard, shard_files, shard_info
from llmpy.formats.load import LoadedModel, load_model
from llmpy.formats.open_tokenizer import open_tokenizer
from llmpy.formats.tensor_map import in_memory_interleaved, parts
from llmpy.models.config import ModelConfig
from llmpy.models.gpt2 import GPT2_VOCAB_SIZE
from llmpy.models.precision import resolve
from llmpy.models.presets import family_of_descriptor, shape_of
from llmpy.models.registry import family_of, new_model, plan_training
from llmpy.models.transformer import Model, plan_parameters
from llmpy.tokenization.base import NAMES as TOKENIZER_NAMES
from llmpy.tokenization.base import Tokenizer
from llmpy.tokenization.training import is_trained
from llmpy.training.config import TrainConfig

# Narrower models take larger steps: 6e-4 at 768 channels, as llm.c trains GPT-2 124M, and 2.5e-3 at 128.
LR, LR_CHANNELS, LR_POWER = 6e-4, 768, 0.8
PADDED = 1.05  # the largest part of a vocabulary that padding makes it: Qwen's and Phi's are padded by far less


@dataclass
class TokenData:
    """Shards to train on and to validate on, and the vocabulary that they are in."""

    train: list[Path]
    val: list[Path]
    tokenizer: Tokenizer | None
    tokenizer_spec: str | None  # what --tokenizer says to get the same again
    vocab_size: int
    fingerprint: list[str]  # changes with the training data


@dataclass
class Assembly:
    """`config` has every setting filled in; `val` is None where there is nothing to validate on.

    `chat_template` is that of the model to start from.
    """

    config: TrainConfig
    model: Model
    train: DataLoader
    val: DataLoader | None
    tokenizer: Tokenizer | None
    fingerprint: list[str]
    chat_template: StoredTemplate | None


def assemble(config: TrainConfig, checkpoint: Path | None = None) -> Assembly:
    """Reads, prepares and takes all that `config` asks for, the cheapest first. Raises UserError for what does not fit.

    A run that goes on from a `checkpoint` has its shape from there, and its parameters are left to be read.
    """
    config = with_absolute_paths(config)
    initial = None
    if checkpoint is None and config.init is not None:
        initial = load_model(config.init)
    elif checkpoint is None:
        shape_of(config.model, **config.sizes)  # what cannot be is said before the data is read
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
    # What goes on from a model will be asked in the form that the model was taught.
    template = template_of(initial.source, initial.tokenizer_source) if initial else None
    filled_in = _filled_in(config, shape, train, data)
    return Assembly(filled_in, model, train, val, data.tokenizer, data.fingerprint, template)


def _filled_in(config: TrainConfig, shape: ModelConfig, train: DataLoader, data: TokenData) -> TrainConfig:
    """The config with everything chosen that was left open."""
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


def default_learning_rate(channels: int) -> float:
    """The highest learning rate for a width, where none is given, to two digits."""
    return float(f"{LR * (LR_CHANNELS / channels) ** LR_POWER:.2g}")


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Files and folders by their full names, so that the run goes on from anywhere; names of corpora stay names."""

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


# ---- data ----------------------------------------------------------------------------------------------------------


def open_data(config: TrainConfig, initial: LoadedModel | None = None) -> TokenData:
    """Shards as they are, text made into shards; in the tokens of `initial`, a model to start from, if there is one."""
    if (files := _shards(config.data, "train")) is not None:
        if config.val_fraction is not None:
            raise UserError(f"--val-fraction: {config.data} holds tokens already, and has been split: leave it out")
        data = _of_shards(config, files, initial)
    else:
        data = _of_text(config, initial)
    seals = check_seals(data.train)
    check_seals(data.val)
    data.fingerprint = [seal or str(shard_info(path).tokens) for path, seal in zip(data.train, seals, strict=True)]
    return data


def _shards(source: str, split: str) -> list[Path] | None:
    """The shards that `source` names, of a folder those of the split; None where it names something else."""
    path = Path(source)
    if path.is_dir():
        shards = sorted(file for file in path.glob("*.bin") if is_shard(file))
        named = [file for file in shards if re.search(rf"_{split}(_\d+)?\.bin$", file.name)]
        return named or shards or None
    return shard_files(source) if path.suffix == ".bin" else None


def _of_shards(config: TrainConfig, train: list[Path], initial: LoadedModel | None) -> TokenData:
    spec = config.tokenizer
    if spec is not None and is_trained(spec):
        raise UserError(f"--tokenizer {spec}: {config.data} holds tokens already, and none can be trained on them")
    if spec is None and (beside := train[0].parent / TOKENIZER).exists():
        spec = str(beside)
    if spec is None and initial is not None and initial.tokenizer_source is not None:
        spec = str(initial.tokenizer_source)
    if spec is None and dtype_for(GPT2_VOCAB_SIZE) == shard_info(train[0]).dtype:
        spec = "gpt2"  # llm.c's shards come without a tokenizer
    if spec is None:
        raise UserError(f"{config.data} says nothing of its tokenizer: give --tokenizer")
    try:
        tokenizer = open_tokenizer(spec)
    except UserError:
        if spec != "gpt2":
            raise
        tokenizer = None  # without a network tokens can be learned, though not shown
    vocab_size = tokenizer.vocab_size if tokenizer else GPT2_VOCAB_SIZE
    val: list[Path] = []
    if config.val_data is not None:
        val = _validation_files(config.val_data, spec)
    elif Path(config.data).is_dir():
        val = [file for file in _shards(config.data, "val") or [] if file not in train]
    return TokenData(train, val, tokenizer, spec, vocab_size, [])


def _of_text(config: TrainConfig, initial: LoadedModel | None) -> TokenData:
    """A text without one to validate on gives a part of itself; with one, it is trained on as a whole."""
    spec = config.tokenizer
    if spec is None and initial is not None:
        if initial.tokenizer_source is None:
            raise UserError(f"{config.init} has no tokenizer beside it: give --tokenizer, the one it was made with")
        spec = str(initial.tokenizer_source)
    if spec is None:
        kind = family_of_descriptor(config.model).tokenizer
        spec = f"{kind}:{config.vocab_size or DEFAULT_VOCABULARY}"
    data = prepare(config.data, spec, val_fraction=config.val_fraction)
    train, val = shard_files(data.train), shard_files(data.val)
    if config.val_data is not None:
        train, val = train + val, _validation_files(config.val_data, str(data.tokenizer))
    return TokenData(train, val, Tokenizer.load(data.tokenizer), spec, data.vocab_size, [])


def _validation_files(source: str, tokenizer: str) -> list[Path]:
    """All the shards of --val-data, in the tokens of the training data."""
    if (files := _shards(source, "val")) is not None:
        return files
    data = prepare(source, tokenizer)
    return shard_files(data.train) + shard_files(data.val)


def validation_loader(files: Sequence[Path], B: int, T: int, vocab_size: int) -> DataLoader | None:
    """Of at most B sequences at a time, fewer where the files have no more; None where they have not even one."""
    most = max((shard_info(path).tokens for path in files), default=0)
    fit = min(B, (most - 1) // T)
    return DataLoader(files, fit, T, shuffle=False, vocab_size=vocab_size) if fit > 0 else None


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
    """A model in training keeps the channels that positions rotate in the order of its checkpoints, Hugging Face's."""
    return shape.with_rope_interleaved(False)


def check_memory(shape: ModelConfig, config: TrainConfig) -> None:
    """Raises UserError, before any is taken, where a run needs more memory than there is; says what would fit."""
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
