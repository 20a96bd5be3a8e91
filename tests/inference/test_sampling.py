"""Samplers: what they may draw, how often, and that the draws are llama2.c's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmpy.errors import UserError
from llmpy.inference.sampling import RecentTokens, Sampling, _first_beyond, log_probability, sample
from llmpy.utils.rng import Xorshift

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def draws(sampling, n=4000, logits=LOGITS):
    random = Xorshift(7)
    return np.bincount([sample(logits, sampling, random) for _ in range(n)], minlength=len(logits)) / n


def test_greedy_takes_the_likeliest_and_draws_nothing():
    random = Xorshift(1)
    assert sample(LOGITS, Sampling(temperature=0), random) == 1
    assert random.state == Xorshift(1).state


def test_plain_draws_follow_the_distribution():
    np.testing.assert_allclose(draws(Sampling(1.0, 0, 1.0)), np.exp(LOGITS), atol=0.02)


def test_temperature_sharpens():
    expected = np.exp(LOGITS / 0.5) / np.exp(LOGITS / 0.5).sum()
    np.testing.assert_allclose(draws(Sampling(0.5, 0, 0.0)), expected, atol=0.02)


def test_top_k_keeps_the_k_likeliest():
    np.testing.assert_allclose(draws(Sampling(1.0, 2, 1.0)), [0, 4 / 7, 0, 3 / 7, 0], atol=0.02)


def test_top_p_keeps_the_fewest_whose_sum_exceeds_p():
    np.testing.assert_allclose(draws(Sampling(1.0, 0, 0.75)), [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85], atol=0.02)
    np.testing.assert_allclose(draws(Sampling(1.0, 0, 0.69)), [0, 4 / 7, 0, 3 / 7, 0], atol=0.02)
    assert draws(Sampling(1.0, 0, 0.3))[1] == 1


def test_top_p_applies_to_what_top_k_leaves():
    # of the two likeliest the first has 4/7 = 0.571
    assert draws(Sampling(1.0, 2, 0.57))[1] == 1
    assert draws(Sampling(1.0, 2, 0.58))[3] > 0.3


def test_equal_chances_and_a_small_p_leave_one():
    assert draws(Sampling(1.0, 0, 0.1), 50, np.zeros(2, np.float32)).max() == 1


def llama2c(logits, temperature, top_p, coin):
    """sample() of llama2.c's run.c, statement by statement, in float32."""
    if temperature == 0:
        return int(np.argmax(logits))
    p = logits / np.float32(temperature)
    p = np.exp(p - p.max())
    p = p / p.sum()
    n = len(p)
    if top_p <= 0 or top_p >= 1:
        order, last, total = range(n), n - 1, 1.0
    else:
        cutoff = (1 - top_p) / (n - 1)
        order = sorted((i for i in range(n) if p[i] >= cutoff), key=lambda i: -p[i])
        total, last = 0.0, len(order) - 1
        for i, token in enumerate(order):
            total += p[token]
            if total > top_p:
                last = i
                break
    cumulative = 0.0
    for token in list(order)[: last + 1]:
        cumulative += p[token]
        if coin * total < cumulative:
            return token
    return list(order)[last]


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.5])
def test_draws_are_those_of_llama2c(temperature, top_p):
    random = np.random.default_rng(0)
    ours, theirs = Xorshift(5), Xorshift(5)
    for _ in range(50):
        logits = random.normal(0, 2, 300).astype(np.float32)
        expected = llama2c(logits, temperature, top_p, theirs.uniform() if temperature else 0.0)
        assert sample(logits, Sampling(temperature, 0, top_p), ours) == expected


@given(
    logits=hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    temperature=st.floats(0, 1e6),
    top_k=st.integers(0, 30),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    penalty=st.floats(0.1, 10),
    recent=st.lists(st.integers(0, 30), max_size=4),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_logits_give_a_token(logits, temperature, top_k, top_p, min_p, penalty, recent, seed):
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    token = sample(logits, sampling, Xorshift(seed), recent)
    assert 0 <= token < len(logits)
    if not recent and 0 < top_k < len(logits):
        assert logits[token] >= np.sort(logits)[-top_k]


def test_a_token_of_no_chance_is_never_drawn():
    logits = np.array([-np.inf, 0.0, -np.inf], np.float32)
    assert draws(Sampling(1.0, 0, 1.0), 100, logits)[1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_no_number_is_said(bad):
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(UserError, match="not a number"):
        sample(logits, Sampling(), Xorshift(1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 1.5},
        {"top_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("nan")},
        {"repetition_window": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="must be"):
        Sampling(**wrong)


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    np.testing.assert_allclose(draws(Sampling(1.0, 0, 1.0, min_p=0.5)), [0, 4 / 7, 0, 3 / 7, 0], atol=0.02)
    assert draws(Sampling(1.0, 0, 1.0, min_p=1.0))[1] == 1
    assert draws(Sampling(1.0, 2, 0.99, min_p=0.8))[1] == 1, "after top-k and top-p"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_repetition_penalty_is_ctrls(sign):
    """A logit above 0 is divided, one below multiplied, once however often the token was there."""
    logits = sign * np.array([2.0, 1.9, 1.0], np.float32)
    penalty = 1.25
    expected = logits.copy()
    expected[[0, 2]] *= 1 / penalty if sign > 0 else penalty
    plain, ours = Sampling(1.0, 0, 1.0), Sampling(1.0, 0, 1.0, repetition_penalty=penalty)
    one, other = Xorshift(3), Xorshift(3)
    before = logits.copy()
    for _ in range(200):
        assert sample(logits, ours, one, [2, 0, 2, 2]) == sample(expected, plain, other)
    np.testing.assert_array_equal(logits, before)
    if sign > 0:
        assert sample(logits, Sampling(0.0, repetition_penalty=penalty), one, [0]) == 1, "greedy choice heeds it"


def test_the_repetition_penalty_is_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = np.random.default_rng(0).normal(0, 3, 50).astype(np.float32)
    recent = [3, 7, 3, 49]
    process = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    theirs = process(torch.tensor([recent]), torch.from_numpy(logits)[None])[0].numpy()
    ours = Sampling(1.0, 0, 1.0, repetition_penalty=1.7)
    one, other = Xorshift(3), Xorshift(3)
    for _ in range(100):
        assert sample(logits, ours, one, recent) == sample(theirs, Sampling(1.0, 0, 1.0), other)


def test_log_probabilities_are_those_of_the_distribution():
    np.testing.assert_allclose([log_probability(LOGITS + 7, i) for i in range(5)], LOGITS, atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 100])
def test_recent_tokens_are_the_different_ones_of_the_window(window):
    tokens = np.random.default_rng(0).integers(0, 5, 60).tolist()
    recent = RecentTokens(window, tokens[:2])
    for end in range(2, 60):
        assert sorted(recent) == sorted(set(tokens[max(0, end - window) : end]))
        assert len(recent) == len(set(recent))
        assert (tokens[end] in recent) == (tokens[end] in tokens[max(0, end - window) : end])
        recent.add(tokens[end])


@pytest.mark.parametrize("spread", [0.1, 3.0, 8.0])
def test_draws_from_a_large_vocabulary_are_those_of_the_plain_formula(spread):
    """Sorted whole and summed up one by one, in float64; where many are equal the first come first."""
    logits = np.random.default_rng(1).normal(0, spread, 5003).astype(np.float32)
    logits[::7] = np.round(logits[::7])
    weights = np.exp(logits - logits.max())
    for p, min_p in ((1.0, 0.0), (0.9, 0.0), (0.5, 0.1), (0.0, 0.02)):
        order = np.argsort(-weights, kind="stable") if 0 < p < 1 else np.arange(5003)
        if 0 < p < 1:
            sums = np.cumsum(weights[order], dtype=np.float64)
            order = order[: np.searchsorted(sums, p * sums[-1], side="right") + 1]
        order = order[weights[order] >= min_p]
        sums = np.cumsum(weights[order], dtype=np.float64)
        ours, theirs = Xorshift(5), Xorshift(5)
        for _ in range(50):
            expected = order[np.searchsorted(sums, theirs.uniform() * sums[-1], side="right")]
            assert sample(logits, Sampling(1.0, 0, p, min_p), ours) == expected


@pytest.mark.parametrize(("size", "last"), [(3, 1), (256, 200), (257, 256), (700, 600), (700, 255), (512, 511)])
def test_a_share_beyond_all_is_the_last_that_has_any_weight(size, last):
    """Sums that are rounded differently may leave a draw of almost 1 beyond the end."""
    weights = np.zeros(size, np.float32)
    weights[last] = 0.1
    assert _first_beyond(weights, 1.0) == last
