"""Models of odd sizes, and the files of runs, for tests of several packages."""

from __future__ import annotations

import json

import numpy as np

from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.tensor_map import take_parameters
from llmpy.models.gpt2 import GPT2, GPT2Config
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters
from llmpy.utils.atomic_files import sha256_of

CONFIG = GPT2Config(vocab_size=61, context=9, layers=2, heads=3, channels=12)
BYTES = GPT2Config(257, 9, 1, 2, 4)  # the vocabulary of the byte tokenizer


def make_model(config: GPT2Config = CONFIG, batch_size: int = 2) -> GPT2:
    """Every parameter is drawn, norms and biases too, so that none can be mistaken for another."""
    model = GPT2(config, "reference", batch_size, config.context)
    random = np.random.default_rng(1)
    for spec, view in model.parameters.items():
        view[: spec.rows] = random.normal(1.0 if spec.init == "ones" else 0.0, 0.3, view[: spec.rows].shape)
    return model


def write_checkpoint(folder, model, sealed=True):
    """A checkpoint as training leaves it."""
    huggingface.write_model(folder, model.config, model.parameters, end_of_text=256)
    sums = {name: sha256_of(folder / name) for name in ("config.json", "model.safetensors")}
    (folder / "state.json").write_text(json.dumps({"sha256": sums}))
    if sealed:
        (folder / "DONE").write_text(sha256_of(folder / "state.json") + "\n")
    return folder


# A Llama of odd sizes, in every way that one can differ from another.
LLAMA = LlamaConfig(vocab_size=37, context=9, layers=3, heads=6, kv_heads=2, channels=36, hidden=20)


def llama_parameters(config: LlamaConfig = LLAMA) -> Parameters:
    """Every parameter is drawn, norms and biases too, so that none can be mistaken for another."""
    parameters = take_parameters(config)
    random = np.random.default_rng(2)
    for spec, view in parameters.items():
        view[...] = random.normal(1.0 if spec.init == "ones" else 0.0, 0.3, view.shape)
    return parameters
