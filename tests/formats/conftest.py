"""A model of odd sizes, and damage to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.tensor_map import take_parameters
from llmpy.models.gpt2 import GPT2, GPT2Config
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters
from llmpy.tokenization.base import ByteTokenizer
from llmpy.utils.atomic_files import sha256_of
from llmpy.utils.memory import MemoryPlan

CONFIG = GPT2Config(vocab_size=61, context=9, layers=2, heads=3, channels=12)
BYTES = GPT2Config(257, 9, 1, 2, 4)  # the vocabulary of the byte tokenizer


def make_model(config: GPT2Config = CONFIG, batch_size: int = 2) -> GPT2:
    """Every parameter is drawn, norms and biases too, so that none can be mistaken for another."""
    model = GPT2(config, "reference", batch_size, config.context)
    random = np.random.default_rng(1)
    for spec, view in model.parameters.items():
        view[: spec.rows] = random.normal(1.0 if spec.init == "ones" else 0.0, 0.3, view[: spec.rows].shape)
    return model


@pytest.fixture(scope="session")
def model() -> GPT2:
    return make_model()


@pytest.fixture
def small_memory(monkeypatch):
    """`small_memory(path)`: from here on a read may take as much as a file of that size can justify, no more."""

    def limit(path: Path) -> None:
        size = path.stat().st_size if path.exists() else 0
        take = MemoryPlan.take

        def checked(plan: MemoryPlan, *arguments: str) -> dict[str, np.ndarray]:
            # numbers in half precision double, and the vocabulary is padded to a multiple of 128 rows
            assert plan.bytes <= 4 * size + 65536, f"{plan.bytes} bytes for a file of {size}"
            return take(plan, *arguments)

        monkeypatch.setattr(MemoryPlan, "take", checked)

    return limit


def write_checkpoint(folder, model, sealed=True):
    """A checkpoint as training leaves it."""
    huggingface.write_model(folder, model.config, model.parameters, end_of_text=256)
    sums = {name: sha256_of(folder / name) for name in ("config.json", "model.safetensors")}
    (folder / "state.json").write_text(json.dumps({"sha256": sums}))
    if sealed:
        (folder / "DONE").write_text(sha256_of(folder / "state.json") + "\n")
    return folder


@pytest.fixture
def run_folder(tmp_path):
    """A run with two complete checkpoints and one that was not finished."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("# llmpy train\n")
    ByteTokenizer().save(folder / "tokenizer.json")
    for step in (2, 10, 300):
        model = make_model(BYTES)
        model.parameters.lnfb[:] = step
        write_checkpoint(folder / f"step_{step:08d}", model, sealed=step != 300)
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
