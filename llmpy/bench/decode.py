"""Generating, through the engine as a user has it: tokens one by one, several texts at once, or a prompt being read.

Every token costs one pass over the weights, so that memory bandwidth limits it: beside the speed stands what of it was
used. Peers run the same weights: llama2.c's `run`, llama.cpp, and to read a prompt PyTorch.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmpy import kernels
from llmpy.bench import machine, roofline, timing
from llmpy.errors import UserError
from llmpy.formats import llama2c
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.load import load_model
from llmpy.formats.tensor_map import take_parameters
from llmpy.inference.engine import Engine
from llmpy.utils.progress_bar import bar

FIRST = 1  # the token that every text begins with, where nothing else is said: BOS of llama2.c


@dataclass(frozen=True)
class Generation:
    """A measurement of generation: the model in a file or folder, and the number of tokens.

    With `prompt` 0, `tokens` tokens are decoded behind one token, for `batch_size` texts at a time. Otherwise a prompt
    of `prompt` tokens is prefilled. `precision` None takes the engine's default.
    """

    model: str
    precision: str | None
    threads: int
    tokens: int = 256
    batch_size: int = 1
    prompt: int = 0
    backend: str = "cpu"

    def prompt_ids(self, vocab_size: int, number: int = 0) -> np.ndarray:
        """int32 [prompt], random, of each number others, so that none is known from before; or the first token."""
        if not self.prompt:
            return np.array([min(FIRST, vocab_size - 1)], np.int32)
        return np.random.default_rng(number).integers(0, vocab_size, self.prompt, np.int32)


class Rival(Protocol):
    """A peer: its name, and a contestant whose turns give seconds a token."""

    @property
    def name(self) -> str: ...
    def contestant(self, work: Generation, folder: Path) -> contextlib.AbstractContextManager[timing.Contestant]:
        """Ready to be measured; `folder` is for its files. Raises UserError where it cannot run this model."""


# ---- ours ----------------------------------------------------------------------------------------------------------


def our_generation(work: dict[str, Any]) -> Callable[[], float]:
    """Returns a worker's job, which gives the seconds a token, of `batch_size` texts together."""
    todo = Generation(**work)
    engine = open_engine(todo)
    kernels.start(todo.backend, todo.threads, engine.precision)
    tokens, numbers = 1 if todo.prompt else todo.tokens, count()

    def generate() -> tuple[float, int]:
        """Seconds, and tokens in them: the whole prompt up to its first answer, or what comes behind that."""
        prompt = todo.prompt_ids(engine.model.config.vocab_size, next(numbers))
        start = time.perf_counter()
        steps = engine.generate(prompt, tokens, temperature=0.0, num_samples=todo.batch_size)
        next(steps)
        if todo.prompt:
            return time.perf_counter() - start, todo.prompt
        start = time.perf_counter()
        made = sum(todo.batch_size for _ in steps)
        return time.perf_counter() - start, made

    return lambda: timing.seconds_each(generate)


def open_engine(work: Generation) -> Engine:
    """The model with its engine. Raises UserError for a precision that the engine has not."""
    model = load_model(work.model)
    return Engine(model, work.backend, precision=work.precision or "stored")


def within(work: Generation, context: int) -> Generation:
    """Returns `work`, its tokens cut to the context. Raises UserError for a longer prompt, and for a single token."""
    if work.prompt > context:
        raise UserError(f"a prompt of {work.prompt} tokens: the model's context is {context}: give at most that many")
    work = replace(work, tokens=min(work.tokens, context))
    if work.tokens < 2:
        raise UserError("generating is timed from the second token on: give 2 --tokens or more")
    return work


def bytes_read(engine: Engine, work: Generation) -> dict[str, int]:
    """Counts the bytes that one decode step reads.

    Every weight matrix counts once for all texts; keys and values count for each text, at the middle position.
    """
    config, weights = engine.model.config, engine.weights
    heads = config.kv_heads
    position = config.layers * 2 * heads * config.head_size * (2 if engine.precision == "bfloat16" else 4)
    looked_up = 0 if weights.head is weights.embedding else weights.embedding.nbytes  # one row of it is read
    return {"weights": weights.nbytes - looked_up, "cache": position * work.batch_size * work.tokens // 2}


# ---- models to measure ---------------------------------------------------------------------------------------------


def write_random(config: Any, folder: Path) -> Path:
    """A model of this shape in a file that `llmpy.load` reads, and llama2.c's `run` where it can: normal(0, 0.02).

    BOS, at which llama2.c stops, has an embedding of zeros in it, and so is never the likeliest token.
    """
    parameters, random = take_parameters(config), np.random.default_rng(0)
    for spec, view in parameters.items():
        view[...] = 1 if spec.init == "ones" else 0
        if spec.init == "normal":
            rows = view[: spec.rows]
            rows[...] = random.standard_normal(rows.shape, np.float32) * np.float32(0.02)
    if config.rope_interleaved:
        (parameters.wte if config.tied else parameters.lm_headw)[FIRST] = 0
        llama2c.write_model(folder / "random.bin", config, parameters)
        return folder / "random.bin"
    huggingface.write_model(folder / "random", config, parameters)
    return folder / "random"


# ---- the measurement -----------------------------------------------------------------------------------------------


def bench(work: Generation, rounds: int, rivals: list[Rival], folder: Path) -> dict[str, Any]:
    """Ours, the rivals, and how fast this machine reads, in turns. benchmarks/README.md describes the fields.

    A batch is measured beside one text alone. `folder` is for files that are gone afterwards.
    """
    engine = open_engine(work)
    kernels.start("cpu", work.threads, engine.precision)  # compiled here, where it shows
    config = engine.model.config
    work = within(work, engine.context)
    read = bytes_read(engine, work)
    del engine  # its memory goes before the others take theirs
    alone = [replace(work, batch_size=1)] if work.batch_size > 1 else []
    names = ["llm.py", *("one text alone" for _ in alone), *(rival.name for rival in rivals)]
    with contextlib.ExitStack() as stack:
        contestants = [stack.enter_context(_ours(each)) for each in (work, *alone)]
        contestants += [stack.enter_context(rival.contestant(work, folder)) for rival in rivals]
        memory = stack.enter_context(timing.worker("the ceilings"))
        memory.prepare("llmpy.bench.roofline:reading", warm_up=1, threads=work.threads, seconds=roofline.SECONDS / 5)
        shown = stack.enter_context(bar("measuring", rounds * (len(contestants) + 1), "turns"))
        *times, bandwidths = timing.turns([*contestants, timing.OwnClock(memory)], rounds, shown.advance)
    measured = [_speed(name, seconds) for name, seconds in zip(names, times, strict=True)]
    ours, others = measured[0], measured[1:]
    for other in others:
        other["speedup"] = round(ours["tokens_per_s"] / other["tokens_per_s"], 4)
    best = max(others, key=lambda other: other["tokens_per_s"], default=None)
    return {
        "benchmark": "decode",
        "source": work.model,
        "model": asdict(config),
        "precision": work.precision,
        "tokens": work.tokens,
        "batch_size": work.batch_size,
        "prompt": work.prompt,
        "rounds": rounds,
        **{name: ours[name] for name in ("tokens_per_s", "slowest", "fastest")},
        "peer": best and best["name"],
        "speedup": best and best["speedup"],
        "peers": others,
        "memory": None if work.prompt else _memory(work, ours, read, statistics.median(bandwidths)),
        "machine": machine.describe(work.threads),
    }


@contextlib.contextmanager
def _ours(work: Generation) -> Iterator[timing.Contestant]:
    with timing.worker("llm.py") as us:
        us.prepare("llmpy.bench.decode:our_generation", warm_up=1, work=asdict(work))
        yield timing.OwnClock(us)


def _speed(name: str, seconds: list[float]) -> dict[str, Any]:
    """Tokens a second: the median of the turns, and the ends of their spread."""
    median, slowest, fastest = (1 / one(seconds) for one in (statistics.median, max, min))
    return {
        "name": name,
        "tokens_per_s": round(median, 2),
        "slowest": round(slowest, 2),
        "fastest": round(fastest, 2),
    }


def _memory(work: Generation, ours: dict[str, Any], read: dict[str, int], bandwidth: float) -> dict[str, Any]:
    """Returns the share of the machine's bandwidth in use; one step reads the weights once for all texts of a batch."""
    speed = sum(read.values()) * ours["tokens_per_s"] / work.batch_size
    return {
        "weight_bytes": read["weights"],
        "cache_bytes": read["cache"],
        "gb_per_s": round(speed / 1e9, 2),
        "machine_gb_per_s": round(bandwidth / 1e9, 2),
        "share": round(speed / bandwidth, 4),
    }
