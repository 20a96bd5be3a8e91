"""A real Llama: llama2.c's smallest model, and the text that its own test (test_all.py) expects of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from llmpy import Engine, kernels
from llmpy.config import LlamaConfig
from llmpy.parameters import Parameters, llama_table, total_size

EXPECTED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a"
    " big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\""
    " Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily"
    " was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to"
    " help her mom, so she"
)
BOS = 1


def read_model(path):
    """The few lines that this one file takes."""
    data = path.read_bytes()
    C, H, L, NH, NKV, V, T = np.frombuffer(data, "<i4", 7).tolist()
    config = LlamaConfig(V, T, L, NH, NKV, C, H)
    weights, kv = np.frombuffer(data, "<f4", offset=28), NKV * config.head_size
    parameters = Parameters(llama_table(config), np.empty(total_size(llama_table(config)), np.float32))
    p, start = parameters, 0
    for view in (
        p.wte, p.ln1w, p.qkvw[:, :C], p.qkvw[:, C : C + kv], p.qkvw[:, C + kv :], p.attprojw,
        p.ln2w, p.gateupw[:, :H], p.downw, p.gateupw[:, H:], p.lnfw,
    ):  # fmt: skip
        view[...] = weights[start : start + view.size].reshape(view.shape)
        start += view.size
    return SimpleNamespace(config=config, parameters=parameters)


def read_tokens(path):
    """The bytes of every token; 256 of them are written <0x00>."""
    data, at, tokens = path.read_bytes(), 4, []
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        tokens.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return [bytes([i - 3]) if 3 <= i < 259 else token for i, token in enumerate(tokens)]


@pytest.fixture(params=kernels.BACKENDS)
def backend(request):
    kernels.start(request.param)
    return request.param


def test_greedy_text_is_that_of_llama2c(shared_data, backend):
    folder = shared_data / "llama2c"
    model, tokens = read_model(folder / "stories260K.bin"), read_tokens(folder / "tok512.bin")
    ids = [token for [token] in Engine(model, backend).generate([BOS], 200, temperature=0)]
    assert b"".join(tokens[token] for token in ids).decode().removeprefix(" ") == EXPECTED
