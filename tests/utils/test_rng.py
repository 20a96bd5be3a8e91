"""Random numbers: PyTorch's stream, number for number; llm.c's shuffle; xorshift64*."""

import numpy as np
import pytest

from llmpy.utils.rng import MersenneTwister, Xorshift, hash64


def test_the_first_draws_are_those_of_mt19937_as_everybody_seeds_it():
    assert MersenneTwister(5489).random_uint32(4).tolist() == [3499211612, 581869302, 3890346734, 3586334585]


@pytest.mark.parametrize("n", [1, 2, 7, 15, 16, 17, 24, 31, 32, 1000, 4097])
def test_normal_draws_are_pytorchs(n):
    torch = pytest.importorskip("torch")
    torch.manual_seed(42)
    expected = torch.empty(n).normal_(0.5, 0.02).numpy()
    np.testing.assert_allclose(MersenneTwister(42).normal(n, 0.5, 0.02), expected, rtol=2e-5, atol=2e-7)


def test_one_draw_after_another_stays_in_pytorchs_stream():
    torch = pytest.importorskip("torch")
    torch.manual_seed(7)
    random = MersenneTwister(7)
    for n in (3, 2, 40, 1, 17, 5):  # of fewer than 16, the second of a pair is kept for the next call
        np.testing.assert_allclose(random.normal(n), torch.empty(n).normal_().numpy(), rtol=2e-5, atol=1e-6)


def test_uniform_draws_are_pytorchs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    np.testing.assert_array_equal(MersenneTwister(3).uniform(100), torch.rand(100).numpy())


def test_permutation_is_fisher_and_yatess_by_remainders():
    draws = MersenneTwister(11).random_uint32(9)
    expected = list(range(10))
    for draw, i in zip(draws.tolist(), range(9, 0, -1), strict=True):
        j = draw % (i + 1)
        expected[i], expected[j] = expected[j], expected[i]
    assert MersenneTwister(11).permutation(10).tolist() == expected
    assert MersenneTwister(1).permutation(1).tolist() == [0]
    assert MersenneTwister(1).permutation(0).tolist() == []


def test_a_state_goes_on_where_it_was_taken():
    random = MersenneTwister(1)
    random.normal(700)
    random.normal(3)  # leaves the second of a pair
    state = random.state()
    expected = random.normal(5), random.permutation(50)
    other = MersenneTwister(99)
    other.set_state(state)
    for ours, theirs in zip((other.normal(5), other.permutation(50)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("state", [{"key": [1, 2], "pos": 0}, {"key": [0] * 624, "pos": 625}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="not the state"):
        MersenneTwister(1).set_state(state)


def test_xorshift_is_llm_cs():
    def random_u32(state):  # llm.c's, with C's wrap-around spelled out
        state ^= state >> 12
        state = (state ^ (state << 25)) % 2**64
        state ^= state >> 27
        return state, (state * 0x2545F4914F6CDD1D) % 2**64 >> 32

    random, state = Xorshift(1337), 1337
    for _ in range(5):
        state, draw = random_u32(state)
        assert random.random_uint32() == draw
    state, draw = random_u32(state)
    assert random.uniform() == (draw >> 8) / 2**24
    assert Xorshift(0).random_uint32() > 0  # zero would stay zero


def test_hashes_are_those_of_splitmix_and_differ():
    assert hash64(0) == 0xE220A8397B1DCDAF  # the first number of SplitMix64 with seed 0
    seen = {hash64(*numbers) for numbers in [(), (0, 0), (0,), (1,), (1, 0), (0, 1), (2**64 - 1,), (1, 2, 3)]}
    assert len(seen) == 8
    assert all(0 <= value < 2**64 for value in seen)
