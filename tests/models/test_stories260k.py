"""A real Llama: llama2.c's smallest model, and the text that its own test (test_all.py) expects of it."""

from types import SimpleNamespace

import pytest

from llmpy import Engine, Tokenizer, kernels
from llmpy.formats import llama2c

EXPECTED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a"
    " big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\""
    " Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily"
    " was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to"
    " help her mom, so she"
)


@pytest.fixture(params=kernels.BACKENDS)
def backend(request):
    kernels.start(request.param)
    return request.param


def test_greedy_text_is_that_of_llama2c(shared_data, backend):
    config, parameters = llama2c.read_model(shared_data / "llama2c" / "stories260K.bin")
    tokenizer = Tokenizer.load(shared_data / "llama2c" / "tok512.bin")
    engine = Engine(SimpleNamespace(config=config, parameters=parameters), backend, tokenizer)
    assert "".join(engine.stream("", 200, temperature=0)) == EXPECTED
