"""Runs so small that they train in milliseconds: what the tests of training share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.formats.llmc.shards import write_shard
from llmpy.training.config import TrainConfig
from llmpy.training.trainer import Trainer

VOCABULARY = 257  # of the tokenizer of bytes
TEXT = b"The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 30


def write_data(folder: Path) -> Path:
    """Two shards of bytes to train on and one to validate on, in a folder."""
    folder.mkdir()
    tokens = np.frombuffer(TEXT, np.uint8).astype(np.uint32)
    for name, part in (("train_000000", tokens[:900]), ("train_000001", tokens[900:1600]), ("val", tokens[1600:])):
        write_shard(folder / f"fox_{name}.bin", part, VOCABULARY)
    return folder


def tiny(source: Path, /, **changes: Any) -> TrainConfig:
    """One layer of 16 channels, two sequences of 12 tokens, ten steps."""
    settings: dict[str, Any] = {
        "data": str(source), "tokenizer": "bytes", "layers": 1, "heads": 2, "channels": 16, "batch_size": 2,
        "sequence_length": 12, "steps": 10, "lr": 1e-2, "eval_every": 4, "eval_batches": 3, "checkpoint_every": 4,
        "sample_every": 0, "device": "reference",
    }  # fmt: skip
    return TrainConfig(**(settings | changes))


def trained(config: TrainConfig, out: Path | None = None, **more: Any) -> Trainer:
    """A run that has ended."""
    trainer = Trainer(config, out, quiet=True, **more)
    trainer.train()
    return trainer


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def events(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The events of a kind in metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every training step, to the last bit."""
    return [(event["step"], event["loss"]) for event in events(folder)]
