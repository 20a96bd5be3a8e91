"""PyTorch reading a prompt. Nothing here may load our kernels: they set how long threads spin, PyTorch's too."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from llmpy.bench import peers, timing
from llmpy.formats.load import load_model


def reading(model: str, prompt: int, threads: int, wide: bool, compiled: bool) -> Callable[[], float]:
    """Returns a worker's job on the same weights (bfloat16 unless `wide`), which gives the seconds a prompt token."""
    torch.set_num_threads(threads)
    loaded = load_model(model)
    network = (
        peers.torch_model(loaded.config).load(loaded.parameters).to(torch.float32 if wide else torch.bfloat16).eval()
    )
    tokens = torch.randint(0, loaded.config.vocab_size, (1, prompt))
    del loaded
    read = network.last_logits
    if compiled:
        from torch._inductor import config

        config.freezing = True  # weights that do not change are brought into the order of its products once
        read = torch.compile(read)

    def once() -> tuple[float, int]:
        start = time.perf_counter()
        with torch.inference_mode():
            read(tokens).argmax(-1).item()
        return time.perf_counter() - start, prompt

    return lambda: timing.seconds_each(once)
