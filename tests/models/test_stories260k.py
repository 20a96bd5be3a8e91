"""A real Llama: llama2.c's smallest model, and the text that its own test (test_all.py) expects of it."""

from types import SimpleNamespace

import pytest

from llmpy import Engine, Tokenizer, kernels
from llmpy.formats import llama2c
from llmpy.inference.engine import prompt_ids
from llmpy.inference.sampling import Sampling

EXPECTED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a"
    " big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\""
    " Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily"
    " was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to"
    " help her mom, so she"
)

# prompt, temperature, top-p, seed, ids: what `./run stories260K.bin -z tok512.bin -n 64 -t .. -p .. -s .. -i ..` makes,
# of llama2.c at 350e04f, compiled by gcc 12 -O2 with a line that prints `next`. The prompt's own tokens come first.
DRAWN = [
    ("", 1.0, 0.9, 7,
     [403, 407, 261, 378, 432, 383, 286, 261, 376, 268, 414, 422, 395, 326, 426, 326, 397, 396, 322, 261, 370, 270,
     277, 372, 335, 345, 357, 269, 279, 380, 426, 342, 381, 261, 282, 414, 427, 429, 304, 416, 267, 422, 426, 326,
     286, 399, 349, 420, 289, 428, 269, 259, 411, 295, 266, 426, 346, 261, 419, 355, 345, 357, 432, 313]),
    ("", 0.8, 0.95, 1234,
     [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 381, 261, 268, 420, 412, 360,
     329, 295, 395, 368, 302, 416, 422, 426, 368, 302, 416, 422, 401, 396, 267, 337, 335, 311, 267, 422, 419, 269,
     279, 420, 412, 424, 282, 417, 429, 413, 425, 276, 419, 426, 385, 328, 432, 317, 439, 419, 357, 343]),
    ("", 1.5, 1.0, 3,
     [403, 301, 314, 432, 317, 401, 396, 267, 337, 322, 265, 397, 424, 352, 303, 402, 335, 312, 419, 262, 415, 414,
     340, 443, 317, 263, 414, 354, 350, 269, 336, 450, 436, 319, 430, 430, 422, 298, 420, 327, 421, 266, 464, 384,
     312, 273, 396, 298, 420, 283, 410, 325, 402, 373, 284, 425, 418, 261, 286, 272, 421, 412, 424, 304]),
    ("", 1.0, 0.5, 42,
     [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337, 410, 408,
     419, 292, 411, 322, 265, 262, 379, 419, 415, 271, 411, 426, 385, 328, 432, 358, 272, 277, 264, 261, 262, 423,
     388, 270, 414, 305, 322, 265, 282, 295, 433, 426, 359, 413, 286, 399, 262, 423, 388, 269, 262, 415]),
    ("Lily likes cats and", 1.0, 0.9, 5,
     [317, 397, 354, 419, 280, 294, 419, 269, 279, 380, 426, 338, 397, 354, 419, 267, 284, 295, 433, 311, 272, 412,
     435, 304, 275, 411, 352, 414, 287, 426, 338, 397, 354, 419, 267, 298, 414, 350, 269, 268, 425, 290, 418, 308,
     299, 419, 269, 268, 325, 406, 432, 352, 414, 340, 419, 432, 335, 282, 271, 433, 308, 299, 419, 432]),
]  # fmt: skip


@pytest.fixture(params=("reference", "cpu"))
def backend(request):
    kernels.start(request.param)
    return request.param


@pytest.fixture
def engine(shared_data, backend):
    config, parameters = llama2c.read_model(shared_data / "llama2c" / "stories260K.bin")
    tokenizer = Tokenizer.load(shared_data / "llama2c" / "tok512.bin")
    return Engine(SimpleNamespace(config=config, parameters=parameters), backend, tokenizer)


def test_greedy_text_is_that_of_llama2c(engine):
    assert "".join(engine.stream("", 200, temperature=0)) == EXPECTED


@pytest.mark.parametrize(("prompt", "temperature", "top_p", "seed", "expected"), DRAWN)
def test_drawn_tokens_are_those_of_llama2c(engine, prompt, temperature, top_p, seed, expected):
    ids = prompt_ids(engine.tokenizer, prompt)
    given = len(ids) - 1  # without the token that begins a text
    made = engine.generate(ids, len(expected) - given, temperature, 0, top_p, seed)
    assert [*ids[1:], *(row[0] for row in made)] == expected


def test_texts_side_by_side_are_those_of_llama2c(engine):
    """Of one batch, each with its own temperature, seed and length of prompt."""
    batch, requests = engine.batch(3), []
    for prompt, temperature, top_p, seed, expected in DRAWN:
        ids = prompt_ids(engine.tokenizer, prompt)
        requests.append(batch.submit(ids, Sampling(temperature, 0, top_p), seed, len(expected) - len(ids) + 1))
    for _ in batch.run():
        pass
    for request, (*_, expected) in zip(requests, DRAWN, strict=True):
        assert [*request.prompt[1:], *request.tokens] == expected
