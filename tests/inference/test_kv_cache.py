"""What is read, and what need not be: it lies in a slot already."""

import itertools

import pytest

from llmpy.inference.kv_cache import SHARED, History
from llmpy.inference.scheduler import SINKS
from tests.small_batches import GPT2, LLAMA, PROMPTS, alone, recorded_batch


def test_samples_of_one_prompt_read_it_once():
    batch = recorded_batch(4)
    requests = [batch.submit(PROMPTS[1], seed=n, max_tokens=5) for n in range(4)]
    list(batch.run())
    assert batch.reads == [(0, 0, 30)]
    for n, request in enumerate(requests):
        assert request.tokens == alone(LLAMA, PROMPTS[1], 5, seed=n)


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_common_beginning_is_read_once(config):
    batch, common = recorded_batch(3, config), list(range(20))
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


def test_what_was_made_is_not_read_by_others():
    """Its keys were not made as a prompt's are: the last bits may differ."""
    batch = recorded_batch(2)
    first = batch.submit(PROMPTS[0], seed=1, max_tokens=40)
    list(batch.run())
    batch.submit([*PROMPTS[0], *first.tokens], max_tokens=1)
    batch.step()
    assert batch.reads == [(0, 0, 3), (1, 0, 43)]


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_history_goes_on_where_it_was(config):
    batch, history, other = recorded_batch(2, config), History(), History()
    first = batch.submit(PROMPTS[0], seed=1, max_tokens=5, history=history)
    batch.submit(PROMPTS[2], seed=1, max_tokens=8, history=other)
    list(batch.run())
    assert history.tokens == [*PROMPTS[0], *first.tokens]
    second = batch.submit([*history.tokens, 9, 10], seed=2, max_tokens=7, history=history)
    batch.submit([*other.tokens, 9, 10], seed=2, max_tokens=7, history=other)
    list(batch.run())
    assert second.tokens == alone(config, [*PROMPTS[0], *first.tokens, 9, 10], 7, seed=2)
    assert batch.reads == [(0, 0, 3), (1, 0, 1), (0, 7, 3), (1, 8, 3)]  # the last token that was made, and what is new


def test_a_history_that_is_told_otherwise_keeps_what_is_the_same():
    batch, history = recorded_batch(1), History()
    first = batch.submit(PROMPTS[1], seed=1, max_tokens=9, history=history)
    list(batch.run())
    prompt = [*PROMPTS[1], *first.tokens[:4], 60, 59]
    second = batch.submit(prompt, seed=2, max_tokens=9, history=history)
    again = batch.submit(prompt, seed=2, max_tokens=9, history=history)  # waits for the one before
    list(batch.run())
    assert batch.reads[1:] == [(0, 34, 2), (0, 35, 1)]
    assert second.tokens == again.tokens == alone(LLAMA, prompt, 9, seed=2)


def test_histories_lose_their_slots_to_others_and_are_read_again():
    batch, histories = recorded_batch(2), [History() for _ in range(3)]
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
def test_a_history_outlives_its_context(overflow):
    batch, history = recorded_batch(2, LLAMA, overflow), History()
    for turn in range(12):
        request = batch.submit([*history.tokens, 7, 8, 9], seed=turn, max_tokens=10, history=history)
        list(batch.run())
        assert len(history.tokens) <= 49
        assert history.tokens[-10:] == request.tokens
        if overflow == "roll":
            assert history.tokens[:3] == [7, 8, 9]
    longest = max(length for _, _, length in batch.reads)
    assert longest <= 4 if overflow == "roll" else longest >= 24


def test_a_history_without_a_slot_that_is_too_long_is_cut():
    batch = recorded_batch(1)
    request = batch.submit(PROMPTS[5], seed=1, max_tokens=3, history=History())
    list(batch.run())
    assert batch.reads == [(0, 0, 48)]
    assert request.history.tokens[-3:] == request.tokens
    assert request.history.tokens[:SINKS] == PROMPTS[5][:SINKS]


def test_a_history_goes_on_in_another_batch():
    """And back: what a slot of one holds is not what the same slot of the other does."""
    first, second, history = recorded_batch(1), recorded_batch(2), History()
    text = []
    for turn, where in enumerate((first, first, second, first, second)):
        request = where.submit([*history.tokens, 7], seed=turn, max_tokens=6, history=history)
        list(where.run())
        assert request.tokens == alone(LLAMA, [*text, 7], 6, seed=turn)
        text += [7, *request.tokens]
    assert [start for _, start, _ in first.reads] == [0, 6, 13]
    assert [start for _, start, _ in second.reads] == [0, 20]
