"""A model of odd sizes, and damage to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmpy.config import GPT2Config
from llmpy.memory import MemoryPlan
from llmpy.models.gpt2 import GPT2

CONFIG = GPT2Config(vocab_size=61, context=9, layers=2, heads=3, channels=12)


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

        def checked(plan: MemoryPlan) -> dict[str, np.ndarray]:
            # half-precision numbers double, and the vocabulary is padded to 128 rows of as many channels as a row has
            assert plan.bytes <= 2 * size + 4 * 128 * size, f"{plan.bytes} bytes for a file of {size}"
            return take(plan)

        monkeypatch.setattr(MemoryPlan, "take", checked)

    return limit
