"""Requests that come and go, beside what each gives alone, and where a context is full."""

import threading

import numpy as np
import pytest

from llmpy import kernels
from llmpy.errors import UserError
from llmpy.inference.kv_cache import History
from llmpy.inference.sampling import Sampling
from llmpy.inference.scheduler import SINKS, Batch, overflow_of
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.registry import new_decoder
from tests.small_batches import GPT2, LLAMA, PROMPTS, alone, engine_of, parameters_of, recorded_batch


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


def test_events_are_the_tokens_in_the_order_in_which_they_came():
    batch = recorded_batch(2)
    requests = [batch.submit(prompt, seed=n, max_tokens=9) for n, prompt in enumerate(PROMPTS[:4])]
    made = {request: [] for request in requests}
    for request, token in batch.run():
        made[request].append(token)
    assert [made[request] for request in requests] == [request.tokens for request in requests]


def test_who_came_first_enters_first_and_as_soon_as_a_slot_is_free():
    batch = recorded_batch(2)
    requests = [batch.submit([n], max_tokens=length) for n, length in enumerate((2, 4, 2, 1, 3))]
    steps = [[requests.index(request) for request, _ in batch.step()] for _ in range(6)]
    #        0 ends in step 1, and 2 enters in it; 2 in step 2, and 3, which has its only token with that, and then 4
    assert steps == [[0, 1], [0, 1, 2], [1, 2, 3, 4], [1, 4], [4], []]
    assert batch.idle


def test_a_stop_id_ends_a_request_and_is_not_among_its_tokens():
    expected = alone(LLAMA, [5], 30, seed=3)
    stop = expected[8]
    first = expected.index(stop)
    batch = recorded_batch()
    request = batch.submit([5], seed=3, max_tokens=None, stop_ids=[stop])
    events = list(batch.run())
    assert events == [*((request, token) for token in expected[:first]), (request, None)]
    assert (request.tokens, request.ended) == (expected[:first], "stop")


@pytest.mark.parametrize("when", [0, 1, 4, 90])
def test_a_request_is_cancelled_and_the_others_go_on(when):
    batch = recorded_batch(2)
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


def test_requests_come_from_another_thread():
    batch = recorded_batch(2)
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
    decoder = new_decoder(StoredWeights.of(parameters_of(config), config), "reference")
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
    decoder = new_decoder(StoredWeights.of(parameters_of(config), config), "reference")
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
def test_a_text_stops_where_the_context_is_full(config):
    batch = recorded_batch(config=config, overflow="stop")
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


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_log_probabilities_come_with_the_tokens():
    batch, expected = recorded_batch(), []
    request = batch.submit(PROMPTS[1], seed=4, max_tokens=6, logprobs=True)
    list(batch.run())
    list(engine_of(LLAMA).generate(PROMPTS[1], 6, seed=4, logprobs=expected))
    assert request.logprobs == pytest.approx([row[0] for row in expected], abs=1e-5)


def test_no_tokens_are_no_work():
    batch = recorded_batch()
    request = batch.submit([1], max_tokens=0)
    assert (request.ended, batch.idle, batch.step()) == ("length", True, [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_a_step_that_fails_ends_what_runs_and_leaves_the_batch_whole(monkeypatch, error):
    batch, history = recorded_batch(2), History()
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


def test_a_prompt_that_is_interrupted_is_read_again(monkeypatch):
    batch, history = recorded_batch(1), History()
    decoder, read = batch.decoder, batch.decoder._read_block

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder, "_read_block", fail)
    batch.submit(PROMPTS[1], history=history)
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    monkeypatch.setattr(decoder, "_read_block", read)
    request = batch.submit(PROMPTS[1], seed=1, max_tokens=5, history=history)
    list(batch.run())
    assert request.tokens == alone(LLAMA, PROMPTS[1], 5, seed=1)
    assert batch.reads == [(0, 0, 30)] * 2


@pytest.mark.parametrize(
    ("prompt", "why"), [([], "no tokens"), ([[1]], "no tokens"), ([61], "token 61"), ([-1], "token -1")]
)
def test_a_prompt_that_cannot_be_is_refused(prompt, why):
    with pytest.raises(UserError, match=why):
        recorded_batch().submit(prompt)


def test_a_batch_without_slots_is_refused():
    with pytest.raises(UserError, match="1 slot or more, not 0"):
        engine_of(LLAMA).batch(0)


def test_ids_that_the_tokenizer_lacks_are_never_made():
    decoder = new_decoder(StoredWeights.of(parameters_of(LLAMA), LLAMA), "reference")
    batch = Batch(decoder, 20)
    request = batch.submit([50], Sampling(1.0, 0, 1.0), max_tokens=60)
    list(batch.run())
    assert max(request.tokens) < 20
