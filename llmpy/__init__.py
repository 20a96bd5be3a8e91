"""LLM training and inference in plain Python.

    import llmpy
    model = llmpy.load("runs/default")            # a run folder, a Hugging Face folder, an llm.c .bin
    for piece in llmpy.Engine(model).stream("Once upon a time"):
        print(piece, end="")

Nothing heavy is imported, and nothing compiled, before it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "llmpy.formats",
    "GPT2": "llmpy.models.gpt2",
    "GPT2Config": "llmpy.config",
    "Llama": "llmpy.models.llama",
    "LlamaConfig": "llmpy.config",
    "TrainConfig": "llmpy.run_config",
    "Trainer": "llmpy.trainer",
    "Engine": "llmpy.engine",
    "History": "llmpy.slots",
    "Sampling": "llmpy.sampling",
    "Tokenizer": "llmpy.tokenizers",
    "UserError": "llmpy.errors",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'llmpy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
