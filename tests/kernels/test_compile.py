"""Compilation of the CPU kernels: once, for the types of the model's calls, and never again."""

import numpy as np

from llmpy.config import GPT2Config
from llmpy.kernels import cpu
from llmpy.kernels.cpu.compile import _kernels
from llmpy.models.gpt2 import GPT2


def test_compile_all_compiles_all_that_training_takes():
    """A kernel that is compiled again for other types, float64 for float32, would cost seconds inside the first step."""
    cpu.compile_all()
    before = {dispatcher.py_func.__name__: len(dispatcher.signatures) for dispatcher, _ in _kernels}
    model = GPT2(GPT2Config(vocab_size=61, context=24, layers=1, heads=2, channels=16), "cpu", 2, 24).initialize()
    tokens = np.zeros((2, 24), np.int32)
    model.loss(tokens, tokens)
    model.loss_and_gradients(tokens, tokens)
    scale = 1 / cpu.global_norm(model.gradients.flat)
    cpu.adamw(
        model.parameters.flat,
        model.gradients.flat,
        model.arrays["m"],
        model.arrays["v"],
        1e-3,
        0.9,
        0.95,
        1e-8,
        0.1,
        1,
        scale,
    )
    after = {dispatcher.py_func.__name__: len(dispatcher.signatures) for dispatcher, _ in _kernels}
    assert after == before
    assert set(after.values()) == {1}


def test_compile_all_tells_what_it_compiles_before_it_does():
    told = []
    cpu.compile_all(lambda *message: told.append(message))
    assert not told, "all was compiled already"
