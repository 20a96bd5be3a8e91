"""The loader: llm.c's order, every token once, and a state that goes on exactly."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpy.data.dataloader import DataLoader
from llmpy.errors import UserError
from llmpy.formats.llmc.shards import write_shard


@pytest.fixture
def shards(tmp_path):
    """Three shards of 101, 45 and 70 tokens; a token says where it stands."""
    for i, size in enumerate((101, 45, 70)):
        write_shard(tmp_path / f"s_{i:06d}.bin", np.arange(size) + 1000 * i, 5000)
    return str(tmp_path / "s_*.bin")


def firsts(loader, n) -> list[int]:
    """The first token of each of the next n batches."""
    return [int(loader.next_batch()[0][0, 0]) for _ in range(n)]


class LlmcLoader:
    """llm.c's dataloader.h, written down line by line, with the twister of its rand.h."""

    def __init__(self, sizes, B, T, world, seed):
        self.raw = np.random.RandomState(seed)._bit_generator
        self.counts = [(size - 1) // (world * B * T) for size in sizes]
        self.shards = list(range(len(sizes)))
        self.reset()

    def permute(self, values):
        for i in range(len(values) - 1, 0, -1):
            j = int(self.raw.random_raw()) % (i + 1)
            values[i], values[j] = values[j], values[i]

    def reset(self):
        self.shard = 0
        self.permute(self.shards)
        self.load()

    def load(self):
        self.sample = 0
        self.inside = list(range(self.counts[self.shards[self.shard]]))
        self.permute(self.inside)

    def next(self):
        if self.sample >= self.counts[self.shards[self.shard]]:
            if self.shard == len(self.shards) - 1:
                self.reset()
            else:
                self.shard += 1
                self.load()
        self.sample += 1
        return self.shards[self.shard], self.inside[self.sample - 1]


def test_without_a_shuffle_the_text_is_read_in_order(shards):
    loader = DataLoader(shards, 2, 5, shuffle=False)
    x, y = loader.next_batch()
    assert x.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert y.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    for array in (x, y):
        assert array.dtype == np.int32
        assert array.flags.c_contiguous
        assert array.flags.writeable
    assert (loader.batches_per_epoch, loader.tokens) == (10 + 4 + 6, 216)
    assert firsts(loader, 20) == [
        *range(10, 100, 10),
        *range(1000, 1040, 10),
        *range(2000, 2060, 10),
        0,
    ]
    assert loader.epoch == 1
    loader.reset()
    assert firsts(loader, 2) == [0, 10]


def test_the_last_batch_has_the_last_target(tmp_path):
    write_shard(tmp_path / "exact.bin", np.arange(21), 5000)
    loader = DataLoader([tmp_path / "exact.bin"], 2, 5)
    assert loader.batches_per_epoch == 2
    assert max(loader.next_batch()[1].max() for _ in range(2)) == 20


@settings(max_examples=25)  # each syncs its files to the disk
@given(st.lists(st.integers(11, 60), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_the_shuffle_is_llmcs(tmp_path_factory, sizes, seed):
    folder = tmp_path_factory.mktemp("shards")
    files = [folder / f"{i}.bin" for i in range(len(sizes))]
    for i, size in enumerate(sizes):
        write_shard(files[i], np.arange(size) + 1000 * i, 5000)
    ours, llmcs = DataLoader(files, 2, 5, seed=seed), LlmcLoader(sizes, 2, 5, 1, seed)
    batches = 3 * ours.batches_per_epoch
    assert firsts(ours, batches) == [
        1000 * shard + 10 * sample for shard, sample in (llmcs.next() for _ in range(batches))
    ]


def test_an_epoch_reads_every_sample_once(shards):
    loader = DataLoader(shards, 2, 5)
    epochs = [firsts(loader, loader.batches_per_epoch) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert {tuple(sorted(epoch)) for epoch in epochs} == {
        (*range(0, 100, 10), *range(1000, 1040, 10), *range(2000, 2060, 10))
    }


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_each_sample_without_overlap(shards, shuffle):
    one = DataLoader(shards, 6, 5, shuffle=shuffle)
    ranks = [DataLoader(shards, 2, 5, rank=rank, world=3, shuffle=shuffle) for rank in range(3)]
    for _ in range(2 * one.batches_per_epoch):
        x, y = one.next_batch()
        parts = [loader.next_batch() for loader in ranks]
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), x)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), y)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batches", [0, 1, 9, 10, 14, 20, 47])
def test_the_state_goes_on_exactly(shards, shuffle, batches):
    loader = DataLoader(shards, 2, 5, shuffle=shuffle)
    firsts(loader, batches)
    state = json.loads(json.dumps(loader.state()))
    expected = firsts(loader, 50)
    resumed = DataLoader(shards, 2, 5, shuffle=shuffle, seed=7)
    resumed.set_state(state)
    assert resumed.state() == state
    assert firsts(resumed, 50) == expected
    assert resumed.state() == loader.state()
    resumed.set_state(state)  # back again
    assert firsts(resumed, 50) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_tokens": 20}, "sample_tokens was 20 and is 10 now"),
        ({"shard_tokens": [101, 45]}, r"shard_tokens was \[101, 45\]"),
        ({"shuffle": False}, "shuffle was False and is True now"),
        ({"shard_order": [0, 1, 1]}, "damaged.*no such order of shards"),
        ({"position": 3}, "damaged.*no such order of shards"),
        ({"sample": 11}, "has no sample 11"),
        ({"sample": "x"}, "damaged"),
        ({"rng": {"key": [1], "pos": 0}}, "saved state is damaged"),
        ({"rng": None}, "saved state is damaged"),
    ],
)
def test_a_state_of_something_else(shards, change, message):
    loader = DataLoader(shards, 2, 5)
    with pytest.raises(UserError, match=message):
        loader.set_state(loader.state() | change)
    with pytest.raises(UserError, match="cannot go on in the data"):
        loader.set_state({})


def test_a_text_too_short_for_a_batch(shards):
    with pytest.raises(UserError, match="101 tokens, but one batch of 4 x 64 takes 257") as raised:
        DataLoader(shards, 4, 64)
    assert "lower the sequence length to at most 25 or the batch size to at most 1, or give more text" in str(
        raised.value
    )
    DataLoader(shards, 4, 25)
    DataLoader(shards, 1, 64)
    with pytest.raises(UserError, match=r"2 x 51 x 2 processes takes 205: lower the sequence length to at most 25, or"):
        DataLoader(shards, 2, 51, world=2)
    with pytest.raises(UserError, match="lower both batch size and sequence length"):
        DataLoader(shards, 200, 200)


def test_a_short_last_shard_is_passed_over(shards):
    loader = DataLoader(shards, 2, 30, shuffle=False)
    assert firsts(loader, 4) == [0, 2000, 0, 2000]


def test_ids_beyond_the_vocabulary(shards, monkeypatch):
    with pytest.raises(UserError, match=r"s_000000.bin: token 60 is 60 .*the vocabulary has 60"):
        DataLoader(shards, 2, 5, vocab_size=60)
    loader = DataLoader(shards, 2, 5, vocab_size=1000, shuffle=False)  # the first shard is good
    with pytest.raises(UserError, match=r"s_000001.bin: token 0 is 1000"):
        firsts(loader, 11)


def test_a_damaged_shard_among_good_ones(shards):
    path = shards.replace("*", "000001")
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"s_000001.bin is damaged"):
        DataLoader(shards, 2, 5)
