"""Random numbers that agree with the field's: PyTorch's Mersenne Twister for initial values and shuffles, xorshift64*
for sampling.

A model drawn here from a seed equals, number for number, the one that PyTorch draws; an epoch's order equals llm.c's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_FLOAT_BITS = 24  # PyTorch builds a float from the low 24 bits of a draw


class MersenneTwister:
    """MT19937 (Matsumoto and Nishimura 1998), seeded and read as `torch.manual_seed` and `torch.Tensor.normal_` do."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed)
        self._spare_normal: float | None = None  # the second of a pair that PyTorch keeps for the next call

    def random_uint32(self, n: int) -> np.ndarray:
        """The next n draws, as uint64 [n] below 2**32."""
        return self._bits.random_raw(n)

    def uniform(self, n: int) -> np.ndarray:
        """n floats in [0, 1), float32 [n]."""
        return (self.random_uint32(n) & (2**_FLOAT_BITS - 1)).astype(np.float32) * np.float32(2.0**-_FLOAT_BITS)

    def normal(self, n: int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
        """n draws of the normal distribution by Box and Muller's transform, float32 [n], in PyTorch's order."""
        if n < 16:
            return self._normal_few(n, mean, std)
        values = self.uniform(n)
        full = n - n % 16
        values[:full] = _box_muller(values[:full], mean, std)
        if n % 16:  # PyTorch draws the last 16 anew, overlapping what it has already made
            values[-16:] = _box_muller(self.uniform(16), mean, std)
        return values

    def _normal_few(self, n: int, mean: float, std: float) -> np.ndarray:
        """Fewer than 16: PyTorch draws them one by one in double precision, keeping the second of each pair."""
        values = np.empty(n, np.float32)
        for i in range(n):
            if self._spare_normal is None:
                u1, u2 = self._random_double(), self._random_double()
                radius, theta = np.sqrt(-2 * np.log1p(-u2)), 2 * np.pi * u1
                self._spare_normal, draw = radius * np.sin(theta), radius * np.cos(theta)
            else:
                self._spare_normal, draw = None, self._spare_normal
            values[i] = draw * std + mean
        return values

    def _random_double(self) -> float:
        high, low = (int(u) for u in self.random_uint32(2))
        return float(((high << 32 | low) & (2**53 - 1)) * 2.0**-53)

    def permutation(self, n: int) -> np.ndarray:
        """0..n-1 shuffled, int32 [n]: Fisher and Yates's, from the end, by remainders (as llm.c draws it)."""
        order = np.arange(n, dtype=np.int32)
        if n > 1:
            draws = self.random_uint32(n - 1) % np.arange(n, 1, -1, dtype=np.uint64)
            for i, j in zip(range(n - 1, 0, -1), draws.tolist(), strict=True):
                order[i], order[j] = order[j], order[i]
        return order

    def state(self) -> dict[str, Any]:
        """Returns the state of the generator as JSON types; the generator resumes from it."""
        inner = self._bits.state["state"]
        return {"key": inner["key"].tolist(), "pos": int(inner["pos"]), "spare_normal": self._spare_normal}

    def set_state(self, state: dict[str, Any]) -> None:
        key = np.array(state["key"], dtype=np.uint32)
        if key.shape != (624,) or not 0 <= int(state["pos"]) <= 624:
            raise ValueError("not the state of a Mersenne Twister")
        self._spare_normal = state.get("spare_normal")
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": int(state["pos"])}}


def _box_muller(values: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Uniform [n], n a multiple of 16 -> normal [n]: each 16 are eight first and eight second numbers of pairs."""
    u1, u2 = 1 - values.reshape(-1, 2, 8)[:, 0], values.reshape(-1, 2, 8)[:, 1]
    radius = np.sqrt(-2 * np.log(u1 + np.float32(1e-12)))
    theta = np.float32(2 * np.pi) * u2
    pairs = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)
    return (pairs * np.float32(std) + np.float32(mean)).reshape(-1)


class Xorshift:
    """xorshift64* (Vigna 2016), the generator that llm.c and llama2.c sample with."""

    MASK = 2**64 - 1

    def __init__(self, seed: int) -> None:
        self.state = seed & self.MASK or 1  # zero is the one state it never leaves

    def random_uint32(self) -> int:
        s = self.state
        s ^= s >> 12
        s ^= (s << 25) & self.MASK
        s ^= s >> 27
        self.state = s
        return (s * 0x2545F4914F6CDD1D & self.MASK) >> 32

    def uniform(self) -> float:
        """A float in [0, 1) with 24 bits."""
        return (self.random_uint32() >> 8) / 2**24


def hash64(*numbers: int) -> int:
    """Whole numbers -> 64 bits that look random, others for other numbers (SplitMix64, Steele et al. 2014).

    A random state for every place in a computation, with no generator that would have to be kept in step.
    """
    mask, state = 2**64 - 1, 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state
