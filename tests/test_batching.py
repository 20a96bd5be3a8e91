"""Requests that come and go, beside what each gives alone; where a context is full; what is read and what is not."""

import functools
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from llmpy import kernels
from llmpy.batching import SINKS, Batch, overflow_of
from llmpy.config import GPT2Config, LlamaConfig
from llmpy.engine import Engine
from llmpy.errors import UserError
from llmpy.models import new_decoder
from llmpy.sampling import Sampling
from llmpy.slots import SHARED, History
from tests.formats.conftest import llama_parameters, make_model

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


@pytest.fixture
def batch():
    """`batch(slots, config, overflow)`; its `reads` are (slot, start, length) of all that was read."""

    def make(slots=3, config=LLAMA, overflow=None):
        made = engine_of(config, overflow=overflow).batch(slots)
        made.reads = []
        prefill = made.decoder.prefill

        def recorded(tokens, slot=0, start=0):
            made.reads.append((slot, start, len(tokens)))
            return prefill(tokens, slot, start)

        made.decoder.prefill = recorded
        return made

    return make


@pytest.mark.parametrize("config", [GPT2, LLAMA])
@pytest.mark.parametrize(("backend", "temperature"), [("reference", 0.0), ("reference", 1.0), ("cpu", 1.0)])
def test_each_is_what_it_is_alone(config, backend, temperature):
    """Of unequal lengths, more than there are slots for, coming at different times, going on past the context."""
    kernels.start(backend)
    batch, lengths = engine_of(config, backend).batch(3), (40, 7, 90, 25, 1, 60)
    requests = []
    for number, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True)):
        requests.append(batch.submit(prompt, Sampling(temperature), 5 + number, length))
        for _ in range(2):
            batch.step()
    assert len(list(batch.run())) > 100
    for number, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        expected = alone(config, request.prompt, length, backend, temperature=temperature, seed=5 + number)
        assert request.tokens == expected
        assert request.ended == "length"


def test_events_are_the_tokens_in_the_order_in_which_they_came(batch):
    batch = batch(2)
    requests = [batch.submit(prompt, seed=n, max_tokens=9) for n, prompt in enumerate(PROMPTS[:4])]
    made = {request: [] for request in requests}
    for request, token in batch.run():
        made[request].append(token)
    assert [made[request] for request in requests] == [request.tokens for request in requests]


def test_who_came_first_enters_first_and_as_soon_as_a_slot_is_free(batch):
    batch = batch(2)
    requests = [batch.submit([n], max_tokens=length) for n, length in enumerate((2, 4, 2, 1, 3))]
    steps = [[requests.index(request) for request, _ in batch.step()] for _ in range(6)]
    #        0 ends in step 1, and 2 enters in it; 2 in step 2, and 3, which has its only token with that, and then 4
    assert steps == [[0, 1], [0, 1, 2], [1, 2, 3, 4], [1, 4], [4], []]
    assert batch.idle


def test_a_stop_id_ends_a_request_and_is_not_among_its_tokens(batch):
    expected = alone(LLAMA, [5], 30, seed=3)
    stop = expected[8]
    first = expected.index(stop)
    batch = batch()
    request = batch.submit([5], seed=3, max_tokens=None, stop_ids=[stop])
    events = list(batch.run())
    assert events == [*((request, token) for token in expected[:first]), (request, None)]
    assert (request.tokens, request.ended) == (expected[:first], "stop")


@pytest.mark.parametrize("when", [0, 1, 4, 90])
def test_a_request_is_cancelled_and_the_others_go_on(batch, when):
    batch = batch(2)
    requests = [batch.submit(prompt, seed=n, max_tokens=20) for n, prompt in enumerate(PROMPTS[:4])]
    for _ in range(when):
        batch.step()
    batch.cancel(requests[1])
    batch.cancel(requests[3])
    events = batch.step()
    over = when == 90
    assert [(request, None) in events for request in requests] == [False, not over, False, not over]
    list(batch.run())
    for n in (0, 2):
        assert requests[n].tokens == alone(LLAMA, PROMPTS[n], 20, seed=n)
    assert requests[1].ended == requests[3].ended == ("length" if over else "cancelled")
    assert requests[1].tokens == alone(LLAMA, PROMPTS[1], 20, seed=1)[:when]


def test_requests_come_from_another_thread(batch):
    batch = batch(2)
    requests = []

    def ask():
        for n in range(20):
            requests.append(batch.submit([n], seed=n, max_tokens=3))
            if n % 5 == 4:
                batch.cancel(requests[-1])

    asker = threading.Thread(target=ask)
    asker.start()
    while asker.is_alive() or not batch.idle:
        batch.step()
    asker.join()
    for n, request in enumerate(requests):
        if request.ended == "length":
            assert request.tokens == alone(LLAMA, [n], 3, seed=n)
        else:
            assert (n % 5, request.ended) == (4, "cancelled")


# ---- where a context is full ---------------------------------------------------------------------------------------


def test_a_context_rolls_as_if_what_is_left_had_been_read():
    """In one layer, where keys and values are those of the tokens and of no context; three contexts long."""
    config = LlamaConfig(61, 20, layers=1, heads=4, kv_heads=2, channels=24, hidden=40, rope_theta=500.0)
    decoder = new_decoder(config, parameters_of(config), "reference")
    for prompt in ([7, 1, 3], list(range(20)), list(range(60))):
        text = prompt if len(prompt) <= 20 else prompt[:SINKS] + prompt[-16:]
        expected = []
        for _ in range(70):
            expected.append(int(decoder.prefill(np.array(text, np.int32)).argmax()))
            if len(text) == 20:
                text = text[:SINKS] + text[SINKS + 8 :]
            text = [*text, expected[-1]]
        assert alone(config, prompt, 70, temperature=0) == expected
        assert len(set(expected)) > 2, "a model that repeats itself shows nothing"


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_reading_again_keeps_the_last_half(config):
    decoder = new_decoder(config, parameters_of(config), "reference")
    text, expected = PROMPTS[5][-48:], []
    for _ in range(120):
        expected.append(int(decoder.prefill(np.array(text, np.int32)).argmax()))
        text = [*text, expected[-1]][-24 if len(text) == 48 else -48 :]
    assert alone(config, PROMPTS[5], 120, overflow="reread", temperature=0) == expected


@pytest.mark.parametrize("config", [GPT2, LLAMA])
@pytest.mark.parametrize("context", [1, 2, 3])
@pytest.mark.parametrize("overflow", ["roll", "reread", "stop"])
def test_contexts_of_a_few_tokens(config, context, overflow):
    if config is GPT2 and overflow == "roll":
        return
    engine = engine_of(config, context=context, overflow=overflow)
    made = list(engine.generate([7], 12))
    assert len(made) == (context if overflow == "stop" else 12)


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_text_stops_where_the_context_is_full(batch, config):
    batch = batch(config=config, overflow="stop")
    request = batch.submit(PROMPTS[1], max_tokens=None)
    full = batch.submit(PROMPTS[4], max_tokens=None)
    assert list(batch.run())[-1] == (request, request.tokens[-1])
    assert (len(request.tokens), request.ended) == (48 - 30 + 1, "context")
    assert (len(full.tokens), full.ended) == (1, "context")
    with pytest.raises(UserError, match="70 tokens, more than the context of 48"):
        batch.submit(PROMPTS[5])


def test_what_overflow_can_be():
    assert [overflow_of(can_shift, None) for can_shift in (True, False)] == ["roll", "reread"]
    with pytest.raises(UserError, match="learned"):
        engine_of(GPT2, overflow="roll")
    with pytest.raises(UserError, match="overflow is roll, reread or stop, not 'wrap'"):
        engine_of(LLAMA, overflow="wrap")


# ---- what is read --------------------------------------------------------------------------------------------------


def test_samples_of_one_prompt_read_it_once(batch):
    batch = batch(4)
    requests = [batch.submit(PROMPTS[1], seed=n, max_tokens=5) for n in range(4)]
    list(batch.run())
    assert batch.reads == [(0, 0, 30)]
    for n, request in enumerate(requests):
        assert request.tokens == alone(LLAMA, PROMPTS[1], 5, seed=n)


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_common_beginning_is_read_once(batch, config):
    batch, common = batch(3, config), list(range(20))
    prompts = [common + PROMPTS[1][:n] for n in (16, 3, 20)]
    requests = []
    for prompt in prompts:
        requests.append(batch.submit(prompt, seed=1, max_tokens=9))
        batch.step()
    list(batch.run())
    assert batch.reads == [(0, 0, 36), (1, 0, 23), (2, 16, 24)]  # 23 are too few to leave SHARED of them
    assert SHARED == 16
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.tokens == alone(config, prompt, 9, seed=1)
    again = batch.submit(prompts[2], seed=1, max_tokens=9)  # of one who has left already
    list(batch.run())
    assert batch.reads[-1][1] == 16
    assert again.tokens == requests[2].tokens
    batch.forget()
    batch.submit(prompts[2], max_tokens=1)
    batch.step()
    assert batch.reads[-1][1:] == (0, 40)


def test_what_was_made_is_not_read_by_others(batch):
    """Its keys were not made as a prompt's are: the last bits may differ."""
    batch = batch(2)
    first = batch.submit(PROMPTS[0], seed=1, max_tokens=40)
    list(batch.run())
    batch.submit([*PROMPTS[0], *first.tokens], max_tokens=1)
    batch.step()
    assert batch.reads == [(0, 0, 3), (1, 0, 43)]


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_history_goes_on_where_it_was(batch, config):
    batch, history, other = batch(2, config), History(), History()
    first = batch.submit(PROMPTS[0], seed=1, max_tokens=5, history=history)
    batch.submit(PROMPTS[2], seed=1, max_tokens=8, history=other)
    list(batch.run())
    assert history.tokens == [*PROMPTS[0], *first.tokens]
    second = batch.submit([*history.tokens, 9, 10], seed=2, max_tokens=7, history=history)
    batch.submit([*other.tokens, 9, 10], seed=2, max_tokens=7, history=other)
    list(batch.run())
    assert second.tokens == alone(config, [*PROMPTS[0], *first.tokens, 9, 10], 7, seed=2)
    assert batch.reads == [(0, 0, 3), (1, 0, 1), (0, 7, 3), (1, 8, 3)]  # the last token that was made, and what is new


def test_a_history_that_is_told_otherwise_keeps_what_is_the_same(batch):
    batch, history = batch(1), History()
    first = batch.submit(PROMPTS[1], seed=1, max_tokens=9, history=history)
    list(batch.run())
    prompt = [*PROMPTS[1], *first.tokens[:4], 60, 59]
    second = batch.submit(prompt, seed=2, max_tokens=9, history=history)
    again = batch.submit(prompt, seed=2, max_tokens=9, history=history)  # waits for the one before
    list(batch.run())
    assert batch.reads[1:] == [(0, 34, 2), (0, 35, 1)]
    assert second.tokens == again.tokens == alone(LLAMA, prompt, 9, seed=2)


def test_histories_lose_their_slots_to_others_and_are_read_again(batch):
    batch, histories = batch(2), [History() for _ in range(3)]
    talks = []
    for _turn in range(3):
        for n, history in enumerate(histories):
            request = batch.submit([*history.tokens, n, 7], seed=n, max_tokens=3, history=history)
            list(batch.run())
            talks.append(request.tokens)
    texts = [[], [], []]
    for n, tokens in zip(itertools.cycle(range(3)), talks, strict=False):
        assert tokens == alone(LLAMA, [*texts[n], n, 7], 3, seed=n)
        texts[n] += [n, 7, *tokens]
    assert {start for _, start, _ in batch.reads} == {0}
    batch.reads.clear()
    for _ in range(5):  # who will not come again makes room before who will
        batch.submit([1], max_tokens=2)
        list(batch.run())
    batch.submit([*histories[2].tokens, 7], max_tokens=1, history=histories[2])
    list(batch.run())
    assert batch.reads[-1][1] == len(histories[2].tokens) - 3


@pytest.mark.parametrize("overflow", ["roll", "reread"])
def test_a_history_outlives_its_context(batch, overflow):
    batch, history = batch(2, LLAMA, overflow), History()
    for turn in range(12):
        request = batch.submit([*history.tokens, 7, 8, 9], seed=turn, max_tokens=10, history=history)
        list(batch.run())
        assert len(history.tokens) <= 49
        assert history.tokens[-10:] == request.tokens
        if overflow == "roll":
            assert history.tokens[:3] == [7, 8, 9]
    longest = max(length for _, _, length in batch.reads)
    assert longest <= 4 if overflow == "roll" else longest >= 24


def test_a_history_without_a_slot_that_is_too_long_is_cut(batch):
    batch = batch(1)
    request = batch.submit(PROMPTS[5], seed=1, max_tokens=3, history=History())
    list(batch.run())
    assert batch.reads == [(0, 0, 48)]
    assert request.history.tokens[-3:] == request.tokens
    assert request.history.tokens[:SINKS] == PROMPTS[5][:SINKS]


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_log_probabilities_come_with_the_tokens(batch):
    batch, expected = batch(), []
    request = batch.submit(PROMPTS[1], seed=4, max_tokens=6, logprobs=True)
    list(batch.run())
    list(engine_of(LLAMA).generate(PROMPTS[1], 6, seed=4, logprobs=expected))
    assert request.logprobs == pytest.approx([row[0] for row in expected], abs=1e-5)


def test_no_tokens_are_no_work(batch):
    batch = batch()
    request = batch.submit([1], max_tokens=0)
    assert (request.ended, batch.idle, batch.step()) == ("length", True, [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_a_step_that_fails_ends_what_runs_and_leaves_the_batch_whole(batch, monkeypatch, error):
    batch, history = batch(2), History()
    first = batch.submit(PROMPTS[1], seed=1, max_tokens=9, history=history)
    other = batch.submit(PROMPTS[2], seed=1, max_tokens=9)
    waits = batch.submit(PROMPTS[0], seed=3, max_tokens=9)
    for _ in range(3):
        batch.step()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(batch.decoder, "decode", fail)
        with pytest.raises(error):
            batch.step()
    assert first.ended == other.ended == "failed"
    prompt = [*history.tokens, 5]
    second = batch.submit(prompt, seed=2, max_tokens=9, history=history)
    list(batch.run())
    assert waits.tokens == alone(LLAMA, PROMPTS[0], 9, seed=3)
    assert second.tokens == alone(LLAMA, prompt, 9, seed=2)
    assert batch.reads[-1] == (0, 32, 2)


def test_a_prompt_that_is_interrupted_is_read_again(batch, monkeypatch):
    batch, history = batch(1), History()
    decoder, blocks = batch.decoder, batch.decoder._blocks

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder, "_blocks", fail)
    batch.submit(PROMPTS[1], history=history)
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    monkeypatch.setattr(decoder, "_blocks", blocks)
    request = batch.submit(PROMPTS[1], seed=1, max_tokens=5, history=history)
    list(batch.run())
    assert request.tokens == alone(LLAMA, PROMPTS[1], 5, seed=1)
    assert batch.reads == [(0, 0, 30)] * 2


@pytest.mark.parametrize(
    ("prompt", "why"), [([], "no tokens"), ([[1]], "no tokens"), ([61], "token 61"), ([-1], "token -1")]
)
def test_a_prompt_that_cannot_be_is_refused(batch, prompt, why):
    with pytest.raises(UserError, match=why):
        batch().submit(prompt)


def test_a_batch_without_slots_is_refused():
    with pytest.raises(UserError, match="1 slot or more, not 0"):
        engine_of(LLAMA).batch(0)


def test_ids_that_the_tokenizer_lacks_are_never_made():
    decoder = new_decoder(LLAMA, parameters_of(LLAMA), "reference")
    batch = Batch(decoder, 20)
    request = batch.submit([50], Sampling(1.0, 0, 1.0), max_tokens=60)
    list(batch.run())
    assert max(request.tokens) < 20
