"""Generating on the GPU, through the engine as a user has it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmpy.bench.decode import Generation, our_generation, write_random
from llmpy.models.registry import config_from_dict

ROUNDS = 3


def speeds(
    config: dict[str, Any], precisions: list[str], tokens: int, prompt: int, backend: str = "cuda"
) -> Iterator[dict[str, Any]]:
    """Runs in a child process. Measures tokens/s of decoding one text (from the second token on) and of prefill up to
    the first token, in each precision, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_random(config_from_dict(config), Path(folder)))
        for precision in precisions:
            for what, size in (("decoding", 0), ("reading a prompt", prompt)):
                work = Generation(model, precision, 1, tokens, prompt=size, backend=backend)
                generate = our_generation(asdict(work))
                generate()  # what is compiled and captured on the way does not count
                seconds = statistics.median(generate() for _ in range(ROUNDS))
                yield {"precision": precision, "what": what, "tokens": size or tokens, "tokens_per_s": 1 / seconds}
