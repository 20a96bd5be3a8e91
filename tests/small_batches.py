"""Batches of tiny models of both families, and what a text is alone."""

import functools
from types import SimpleNamespace

import numpy as np

from llmpy.inference.engine import Engine
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.llama import LlamaConfig
from tests.model_files import llama_parameters, make_model

GPT2 = GPT2Config(vocab_size=61, context=48, layers=2, heads=3, channels=12)
LLAMA = LlamaConfig(61, 48, layers=2, heads=4, kv_heads=2, channels=24, hidden=40, rope_theta=500.0)
PROMPTS = [np.random.default_rng(n).integers(0, 61, length).tolist() for n, length in enumerate((3, 30, 1, 47, 48, 70))]


@functools.cache
def parameters_of(config):
    if isinstance(config, GPT2Config):
        return make_model(config, batch_size=1).parameters
    parameters = llama_parameters(config)
    parameters.flat *= 3  # what was said before matters
    return parameters


def engine_of(config, backend="reference", **options):
    return Engine(SimpleNamespace(config=config, parameters=parameters_of(config)), backend, **options)


def alone(config, prompt, n, backend="reference", overflow=None, **options):
    return [ids[0] for ids in engine_of(config, backend, overflow=overflow).generate(prompt, n, **options)]


def recorded_batch(slots=3, config=LLAMA, overflow=None):
    """A batch; its `reads` are (slot, start, length) of all that was read."""
    made = engine_of(config, overflow=overflow).batch(slots)
    made.reads = []
    prefill = made.decoder.prefill

    def recorded(tokens, slot=0, start=0):
        made.reads.append((slot, start, len(tokens)))
        return prefill(tokens, slot, start)

    made.decoder.prefill = recorded
    return made
