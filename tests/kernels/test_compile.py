"""Compilation of the CPU kernels: once, for the types that a model calls them with, and never again."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmpy.kernels import cpu
from llmpy.kernels.cpu.jit.compile import helper

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import sys
import numpy as np
from llmpy import kernels
from llmpy.models.gpt2 import GPT2, GPT2Config
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import Llama, LlamaConfig
from llmpy.models.registry import new_decoder
from llmpy.training.optimizer import AdamW, clip_scale

precision = sys.argv[1]
cpu = kernels.start("cpu", precision=precision)
from llmpy.kernels.cpu.jit.compile import Entry, _kernels
ahead = {kernel: list(kernel.dispatcher.signatures) for kernel in _kernels if not isinstance(kernel, Entry)}


def learn_and_generate(model):
    optimizer = AdamW.of(model)
    tokens = np.zeros((2, 20), np.int32)
    model.loss(tokens, tokens)
    model.loss_and_gradients(tokens, tokens)
    optimizer.update(1, 1e-3, clip_scale(optimizer.gradient_norm(), 1.0))
    decoder = new_decoder(StoredWeights.of(model.parameters, model.config), "cpu", 2, precision=precision)
    decoder.prefill(tokens[0])
    decoder.decode(tokens[:, 0], np.array([20, 0], np.int32), np.array([0, 1], np.int32))
    if decoder.can_shift:
        decoder.shift(0, 1, 5)


llama = LlamaConfig(vocab_size=61, context=24, layers=1, heads=4, kv_heads=2, channels=16, qkv_bias=True)
models = (
    GPT2(GPT2Config(vocab_size=61, context=24, layers=1, heads=2, channels=16), "cpu", 2, 20, precision=precision),
    Llama(llama, "cpu", 2, 20, precision=precision, dropout=0.5),
)
for model in models:
    learn_and_generate(model.initialize())
for kernel, signatures in ahead.items():
    if kernel.dispatcher.signatures != signatures:
        print(kernel.title, "is compiled for", *kernel.dispatcher.signatures, sep="\\n  ")

tokens = np.zeros((2, 20), np.int32)
other = "float32" if precision == "bfloat16" else "bfloat16"
GPT2(models[0].config, "cpu", 2, 20, precision=other).initialize().loss_and_gradients(tokens, tokens)  # all the same
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_compiled_ahead_is_all_that_training_and_generating_take(precision):
    """A kernel that is compiled again, for float64 instead of float32, would cost seconds inside the first step."""
    result = subprocess.run(
        [sys.executable, "-c", TRAIN, precision], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == ""


def test_nothing_is_said_where_all_is_compiled():
    cpu.compile_all()
    told = []
    cpu.compile_all(lambda *message: told.append(message))
    assert not told


def test_helpers_that_are_made_alike_have_names_of_their_own():
    """By which kernels of two processes are linked in one: a name for two functions would be one function for both."""

    def make():
        @helper
        def same(x):
            return x

        return same.py_func.__qualname__

    assert make() != make()
