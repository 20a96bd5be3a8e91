"""Peers of generation: llama2.c's `run`, llama.cpp through its Python package, and PyTorch (prefill only)."""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpy.bench import peers, timing
from llmpy.bench.decode import Generation, Rival
from llmpy.errors import UserError
from llmpy.formats import llama2c
from llmpy.formats.load import load_model
from llmpy.tokenization.sentencepiece_files import CONTROL, NORMAL, UNKNOWN, Pieces, write_llama2c

_SPEED = re.compile(r"achieved tok/s: (\S+)")


@dataclass(frozen=True)
class Llama2c:
    """llama2.c's `run`, or its `runq`, which is known by its name and gets 8 bits: a process for every turn.

    It takes the time itself, from the second token on, as we do.
    """

    binary: Path

    @property
    def name(self) -> str:
        return f"llama2.c's {self.binary.name}"

    @contextlib.contextmanager
    def contestant(self, work: Generation, folder: Path) -> Iterator[timing.Contestant]:
        if work.prompt:
            raise UserError("llama2.c reads a prompt token by token: leave out --prompt, or --against llama2c")
        if not os.access(self.binary, os.X_OK) or self.binary.is_dir():
            raise UserError(f"--binary {self.binary}: there is no such program: build llama2.c's run with make runomp")
        loaded = load_model(work.model)
        config: Any = loaded.config
        if config.family != "llama":
            raise UserError("llama2.c runs Llamas: leave out --against llama2c")
        model, vocabulary = folder / "peer.bin", folder / "vocabulary.bin"
        llama2c.write_model(model, config, loaded.parameters, version=2 if self.binary.stem.endswith("q") else 0)
        vocabulary.write_bytes(write_llama2c(_any_pieces(config.vocab_size)))
        command = [str(self.binary.absolute()), str(model), "-t", "0", "-n", str(work.tokens), "-z", str(vocabulary)]
        yield _Program(self.name, command, peers.thread_settings(work.threads))


def _any_pieces(vocab_size: int) -> Pieces:
    """A vocabulary of that size, whatever it says: `run` wants one, and prints it."""
    kinds = [UNKNOWN, CONTROL, CONTROL] + [NORMAL] * vocab_size
    return Pieces([f"{i} " for i in range(vocab_size)], [0.0] * vocab_size, kinds[:vocab_size])


@dataclass(frozen=True)
class _Program:
    name: str
    command: list[str]
    settings: dict[str, str]

    def turn(self) -> float:
        """Seconds a token."""
        return timing.seconds_each(self._run)

    def _run(self) -> tuple[float, int]:
        environment = timing.ENVIRONMENT | self.settings
        done = subprocess.run(self.command, env=environment, capture_output=True, check=False)
        errors = done.stderr.decode(errors="replace")
        found = _SPEED.search(errors)
        if done.returncode or found is None:
            last = (errors.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{self.name} reached no speed (exit status {done.returncode}): {last[:200]}")
        speed = float(found[1])
        if not (math.isfinite(speed) and speed > 0):
            raise UserError(f"{self.name} was done within a millisecond: give more --tokens, or a larger model")
        return 100 / speed, 100  # it does not say how many tokens it made


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp, in the Python that has llama_cpp."""

    python: str = sys.executable

    name = "llama.cpp"

    @contextlib.contextmanager
    def contestant(self, work: Generation, folder: Path) -> Iterator[timing.Contestant]:
        if Path(work.model).suffix != ".gguf":
            raise UserError(f"llama.cpp reads GGUF files, and {work.model} is none")
        with timing.worker(self.name, peers.thread_settings(work.threads), self.python) as process:
            sizes = {"tokens": work.tokens, "prompt": work.prompt, "threads": work.threads}
            process.prepare("llmpy.bench.llamacpp:generation", warm_up=1, model=str(work.model), **sizes)
            yield timing.OwnClock(process)


@dataclass(frozen=True)
class Torch:
    """PyTorch reading a prompt: the logits behind its last token."""

    peer: peers.Peer

    @property
    def name(self) -> str:
        return self.peer.name

    @contextlib.contextmanager
    def contestant(self, work: Generation, folder: Path) -> Iterator[timing.Contestant]:
        if not work.prompt:
            raise UserError("PyTorch is measured reading a prompt: add --prompt N")
        with timing.worker(self.name, self.peer.environment | peers.thread_settings(work.threads)) as process:
            sizes = {"prompt": work.prompt, "threads": work.threads, "wide": work.precision in (None, "float32")}
            process.prepare(
                "llmpy.bench.torch_peer.prefill:reading",
                warm_up=2,
                model=work.model,
                compiled=self.peer.compiled,
                **sizes,
            )
            yield timing.OwnClock(process)


def rivals(against: str | None, binary: Path | None, python: str | None, torch: list[peers.Peer]) -> list[Rival]:
    """The peers that --against asks for. Raises UserError where its own flag is missing."""
    match against:
        case "llama2c":
            if binary is None:
                raise UserError("--against llama2c needs --binary PATH, the `run` that you built of it")
            return [Llama2c(binary)]
        case "llamacpp":
            return [LlamaCpp(python or sys.executable)]
        case "torch":
            return [Torch(peer) for peer in torch]
        case _:
            return []
