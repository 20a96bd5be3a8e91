"""Generation with the cache against whole forward passes, token by token."""

import itertools

import numpy as np
import pytest

from llmpy.errors import UserError
from llmpy.inference.engine import Engine, prompt_ids, stop_ids_of
from llmpy.inference.kv_cache import History
from llmpy.models.gpt2 import GPT2Config
from llmpy.tokenization.base import ByteTokenizer
from tests.model_files import make_model

CONFIG = GPT2Config(vocab_size=61, context=10, layers=2, heads=3, channels=12)


@pytest.fixture(scope="module")
def model():
    return make_model(CONFIG, batch_size=1)


@pytest.fixture(scope="module")
def speaker():
    """A model whose vocabulary is that of the bytes."""
    return make_model(GPT2Config(257, 16, 1, 2, 8), batch_size=1)


def next_logits(model, tokens):
    """The logits after `tokens`, by a forward pass over them all."""
    padded = np.zeros((1, model.config.context), np.int32)
    padded[0, : len(tokens)] = tokens
    return model.logits(padded)[0, len(tokens) - 1]


def first_of(steps):
    return [ids[0] for ids in steps]


def generate_slowly(model, prompt, n):
    """Greedy, every token by a whole forward pass; where the context is full its last half is kept."""
    T, window, made = model.config.context, list(prompt[-model.config.context :]), []
    for _ in range(n):
        made.append(int(next_logits(model, window).argmax()))
        window.append(made[-1])
        if len(window) > T:
            window = window[-max(1, T // 2) :]
    return made


@pytest.mark.parametrize("prompt", [[5], [1, 2, 3], list(range(9)), list(range(10)), list(range(25))])
def test_greedy_is_the_argmax_of_the_whole_forward_pass_beyond_the_context_too(prompt, model):
    expected = generate_slowly(model, prompt, 40)
    assert first_of(Engine(model, "reference").generate(prompt, 40, temperature=0)) == expected
    assert len(set(expected)) > 2, "a model that repeats itself shows nothing"


def test_the_cpu_backend_says_the_same(model):
    texts = [first_of(Engine(model, backend).generate([1, 2, 3], 40, seed=1)) for backend in ("reference", "cpu")]
    assert texts[0] == texts[1]


def test_a_context_of_one_token():
    model = make_model(GPT2Config(61, 1, 1, 1, 4), batch_size=1)
    made = first_of(Engine(model, "reference").generate([7, 8], 6, temperature=0))
    assert made == generate_slowly(model, [7, 8], 6)


def test_a_seed_repeats_a_text_and_another_seed_does_not(model):
    engine = Engine(model, "reference")
    texts = [first_of(engine.generate([1], 30, seed=seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("prompt", [[1, 2], list(range(10))])
def test_samples_are_those_of_their_seeds_alone(prompt, model):
    engine = Engine(model, "reference")
    together = list(engine.generate(prompt, 30, seed=11, num_samples=3))
    for i in range(3):
        assert [ids[i] for ids in together] == first_of(engine.generate(prompt, 30, seed=11 + i))


def test_a_sample_that_stops_gives_none_and_all_stopped_is_the_end(model):
    engine = Engine(model, "reference")
    free = list(engine.generate([1], 60, seed=1, num_samples=2))
    stop = free[4][0]
    stopped = list(engine.generate([1], 60, seed=1, num_samples=2, stop_ids=[stop]))
    for i in range(2):
        alone = list(itertools.takewhile(lambda token: token != stop, (ids[i] for ids in free)))
        mine = [ids[i] for ids in stopped]
        assert mine == alone + [None] * (len(mine) - len(alone))
    assert len(first_of(engine.generate([1], 60, seed=1, stop_ids=[stop]))) <= 4


def test_a_repetition_penalty_forbids_what_its_window_holds(model):
    engine = Engine(model, "reference")
    prompt = list(range(1, 8))
    options = {"repetition_penalty": 1e6, "temperature": 0}
    made = first_of(engine.generate(prompt, 30, repetition_window=12, **options))
    text = prompt + made
    for i in range(len(prompt), len(text)):
        assert text[i] not in text[max(0, i - 12) : i]
    assert len(set(first_of(engine.generate(prompt, 30, repetition_window=1, **options)))) < 30


def test_log_probabilities_of_the_tokens_that_were_drawn(model):
    engine, logprobs = Engine(model, "reference"), []
    made = list(engine.generate([1, 2], 7, seed=1, num_samples=2, top_k=3, temperature=2.0, logprobs=logprobs))
    assert len(logprobs) == len(made) == 7
    for sample in range(2):
        text = [1, 2]
        for ids, values in zip(made, logprobs, strict=True):
            logits = next_logits(model, text).astype(np.float64)
            expected = logits[ids[sample]] - np.log(np.exp(logits).sum())
            assert values[sample] == pytest.approx(expected, abs=1e-4)
            text.append(ids[sample])


def test_a_sample_that_has_stopped_has_no_log_probability(model):
    engine, logprobs = Engine(model, "reference"), []
    stop = first_of(engine.generate([1], 60, seed=1))[4]
    made = list(engine.generate([1], 60, seed=1, num_samples=2, stop_ids=[stop], logprobs=logprobs))
    assert [[token is None for token in ids] for ids in made] == [[v is None for v in values] for values in logprobs]


def test_only_as_many_steps_as_tokens_are_computed(model, monkeypatch):
    engine = Engine(model, "reference")
    assert list(engine.generate([1], 0)) == []
    decoder = engine._take_batch(1).decoder
    monkeypatch.setattr(decoder, "decode", None)
    assert len(list(engine.generate([1, 2], 1))) == 1


def test_memory_is_taken_once(model):
    engine = Engine(model, "reference")
    for _ in engine.generate([1], 3):
        pass
    batch = engine._batch
    for _ in engine.generate([1, 2, 3], 30):
        pass
    assert engine._batch is batch


def test_texts_that_are_made_in_turn_do_not_disturb_one_another(model):
    engine = Engine(model, "reference")
    expected = [first_of(engine.generate([n], 30, seed=n)) for n in (1, 2, 3)]
    steps = [engine.generate([n], 30, seed=n) for n in (1, 2, 3)]
    rows = list(zip(*steps, strict=True))
    assert [[row[i][0] for row in rows] for i in range(3)] == expected


def test_a_text_that_is_given_up_leaves_its_place(model):
    engine = Engine(model, "reference")
    next(engine.generate([1], 30))
    half = engine.generate([2], 30)
    next(half)
    half.close()
    assert first_of(engine.generate([1], 9, seed=2)) == first_of(Engine(model, "reference").generate([1], 9, seed=2))
    assert engine._batch.idle


def test_a_history_is_the_prompt_with_what_came_of_it(model):
    engine, history = Engine(model, "reference"), History()
    first = first_of(engine.generate([1, 2], 3, seed=1, history=history))
    assert history.tokens == [1, 2, *first]
    list(engine.generate([5], 2, num_samples=2))  # in a larger batch
    second = first_of(engine.generate([*history.tokens, 4], 3, seed=2, history=history))
    assert second == first_of(engine.generate([1, 2, *first, 4], 3, seed=2))
    with pytest.raises(UserError, match="goes on in one way, not in 2"):
        engine.generate([1], history=history, num_samples=2)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_parameters_that_change_are_used_as_they_are(model, backend):
    """A trainer samples from the model it trains; matrices, norms and biases all change."""
    other, random = make_model(CONFIG, batch_size=1), np.random.default_rng(1)
    engine = Engine(other, backend)
    before = first_of(engine.generate([1], 8, temperature=0))
    other.parameters.flat[:] += 0.1 * random.standard_normal(other.parameters.flat.size)
    after = first_of(Engine(other, "reference").generate([1], 8, temperature=0))
    assert first_of(engine.generate([1], 8, temperature=0)) == after != before


def test_tokens_that_the_tokenizer_lacks_are_never_made():
    """A vocabulary padded to a round number, as others' models have, has ids that stand for nothing."""
    model = make_model(GPT2Config(300, 16, 1, 2, 8), batch_size=1)
    model.parameters.wte[257:] *= 50
    made = first_of(Engine(model, "reference", ByteTokenizer()).generate([1], 40, top_p=1.0))
    assert max(made) < 257 <= max(first_of(Engine(model, "reference").generate([1], 40, top_p=1.0)))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"prompt": []}, "no tokens"),
        ({"prompt": [1, 61]}, "token 61"),
        ({"prompt": [-1]}, "token -1"),
        ({"num_samples": 0}, "0 samples"),
        ({"max_tokens": -1}, "-1 tokens"),
        ({"temperature": -1}, "temperature"),
        ({"prompt": [1] * 11, "overflow": "stop"}, "more than the context of 10"),
        ({"top_p": 2}, "top-p"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(options, why, model):
    engine = Engine(model, "reference", overflow=options.get("overflow"))
    options = {"prompt": [1]} | {name: value for name, value in options.items() if name != "overflow"}
    with pytest.raises(UserError, match=why):
        engine.generate(**options)


def test_text_streams_in_whole_characters(speaker):
    engine = Engine(speaker, "reference", ByteTokenizer())
    ids = first_of(engine.generate(list("né".encode()), 200, seed=2, stop_ids=[256]))
    pieces = list(engine.stream("né", 200, seed=2))
    assert "".join(pieces) == ByteTokenizer().decode(token for token in ids if token is not None)
    assert len(pieces) > 1


def test_a_text_ends_before_a_stop_string(speaker):
    engine = Engine(speaker, "reference", ByteTokenizer())
    text = "".join(engine.stream("né", 200, seed=2))
    stop = text[7:9]
    assert "".join(engine.stream("né", 200, seed=2, stop_strings=["never", stop])) == text[: text.index(stop)]
    assert "".join(engine.stream("né", 200, seed=2, stop_strings=["never"])) == text


def test_from_nothing_a_text_begins_after_the_end_of_another(speaker):
    engine = Engine(speaker, "reference", ByteTokenizer())
    ids = first_of(engine.generate([256], 20, seed=2, stop_ids=[256]))
    assert "".join(engine.stream("", 20, seed=2)) == ByteTokenizer().decode(ids)


def test_without_a_tokenizer_there_is_no_text(model):
    with pytest.raises(UserError, match="no tokenizer"):
        Engine(model, "reference").stream("x")


def test_a_tokenizer_without_end_of_text():
    endless = ByteTokenizer()
    endless.end_of_text = None
    assert stop_ids_of(endless) == ()
    with pytest.raises(UserError, match="give a prompt"):
        prompt_ids(endless, "")


def test_it_is_transformers_greedy_text(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from llmpy.formats.huggingface import folder as huggingface

    model = make_model(GPT2Config(61, 32, 2, 3, 12), batch_size=1)
    huggingface.write_model(tmp_path, model.config, model.parameters)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor([[1, 2, 3]]),
            attention_mask=torch.ones(1, 3),
            max_new_tokens=25,
            do_sample=False,
            pad_token_id=0,
        )[0, 3:].tolist()
    assert first_of(Engine(model, "reference").generate([1, 2, 3], 25, temperature=0)) == expected
