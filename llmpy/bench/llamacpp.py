"""llama.cpp as a contestant, through llama-cpp-python: all that runs in the other Python, which need not have Numba."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from llmpy.bench import timing
from llmpy.errors import UserError

PASS = 512  # tokens of a prompt that go through the model at once


def generation(model: str, tokens: int, prompt: int, threads: int) -> Callable[[], float]:
    """Returns a worker's job, which gives the seconds a decoded token, or, with `prompt` > 0, a prefilled token.

    Decoding is greedy and timed from the second token, as ours; prefill is timed up to the prompt's end.
    """
    try:
        import llama_cpp
    except ImportError as error:
        raise UserError(f"{sys.executable} has no llama_cpp: pip install llama-cpp-python, or --python PATH") from error
    context = max(prompt, tokens) + 1
    sizes = {"n_ctx": context, "n_batch": PASS, "n_threads": threads, "n_threads_batch": threads}
    runner = llama_cpp.Llama(model, **sizes, verbose=False)
    ids = np.random.default_rng(0).integers(0, runner.n_vocab(), prompt).tolist() if prompt else [1]

    def read() -> tuple[float, int]:
        runner.reset()
        start = time.perf_counter()
        runner.eval(ids)
        return time.perf_counter() - start, prompt

    def generate() -> tuple[float, int]:
        runner.reset()
        steps = runner.generate(ids, top_k=1, temp=0.0)
        next(steps)
        start = time.perf_counter()
        for _ in range(tokens - 1):
            next(steps)
        return time.perf_counter() - start, tokens - 1

    return lambda: timing.seconds_each(read if prompt else generate)
