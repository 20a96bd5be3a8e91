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

_PUBLIC = {  # "module", or "module:name" where the name differs there
    "load": "llmpy.formats.load:load_model",
    "GPT2": "llmpy.models.gpt2",
    "GPT2Config": "llmpy.models.gpt2",
    "Llama": "llmpy.models.llama",
    "LlamaConfig": "llmpy.models.llama",
    "TrainConfig": "llmpy.training.config",
    "Trainer": "llmpy.training.trainer",
    "Engine": "llmpy.inference.engine",
    "History": "llmpy.inference.kv_cache",
    "Sampling": "llmpy.inference.sampling",
    "Tokenizer": "llmpy.tokenization.base",
    "UserError": "llmpy.errors",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, _, attribute = _PUBLIC[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)
    raise AttributeError(f"module 'llmpy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
