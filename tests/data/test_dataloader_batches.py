"""The loader's other ways to cut batches: llama2.c's windows, and sequences that begin with a document."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st

from llmpy.data.dataloader import DataLoader
from llmpy.errors import UserError
from llmpy.formats.llmc.shards import write_shard

BOS = 1


def stories(lengths, first=100):
    """Documents of so many tokens, each BOS and then numbers that nothing else has."""
    tokens, number = [], first
    for length in lengths:
        tokens += [BOS, *range(number, number + length - 1)]
        number += length - 1
    return np.array(tokens)


@pytest.fixture
def shards(tmp_path):
    """Two shards of documents, some longer than the sequences of these tests, which have 8 tokens."""
    write_shard(tmp_path / "s_000000.bin", stories([5, 9, 3, 20, 8, 2, 4, 11, 7, 30, 6, 12]), 5000)
    write_shard(tmp_path / "s_000001.bin", stories([10, 4, 4, 4, 17, 9, 9, 5], 1000), 5000)
    return str(tmp_path / "s_*.bin")


def rows(loader, batches):
    """The first tokens and targets of all sequences of so many batches, [n, T + 1]."""
    found = []
    for _ in range(batches):
        x, y = loader.next_batch()
        assert x.dtype == y.dtype == np.int32
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        found += np.concatenate([x, y[:, -1:]], axis=1).tolist()
    return found


def windows(path, T):
    tokens = np.fromfile(path, np.uint16)[512:].tolist()
    return [tokens[at : at + T + 1] for at in range(0, len(tokens) - T, T)]


def test_windows_are_those_of_llama2c_each_once_an_epoch_from_all_over_the_shard(shards, tmp_path):
    loader = DataLoader(shards, 3, 8, batches="windows")
    theirs = [window for i in range(2) for window in windows(tmp_path / f"s_00000{i}.bin", 8)]
    seen = rows(loader, loader.batches_per_epoch)
    assert len({tuple(row) for row in seen}) == len(seen)
    assert all(row in theirs for row in seen)
    assert len(theirs) - len(seen) < 2 * 3  # less than a batch of each shard is left out
    assert loader.epoch == 0
    assert any(a[-1] != b[0] for a, b in zip(seen[::3], seen[1::3], strict=False))  # not one behind the other
    assert rows(loader, loader.batches_per_epoch) != seen
    plain = DataLoader(shards, 3, 8, batches="windows", shuffle=False)
    assert rows(plain, 2) == theirs[:6]


def test_documents_begin_all_sequences_and_are_seen_to_their_ends(shards, tmp_path):
    loader = DataLoader(shards, 2, 8, batches="documents", separator=BOS, shuffle=False)
    seen = rows(loader, loader.batches_per_epoch)
    assert all(row[0] == BOS for row in seen)
    tokens = {token for row in seen for token in row[:-1]}
    for i in range(2):
        data = np.fromfile(tmp_path / f"s_00000{i}.bin", np.uint16)[512:]
        starts = [*np.flatnonzero(data == BOS).tolist(), len(data)]
        for first, last in pairwise(starts):
            if last < starts[-3]:  # of the last ones there is not enough left for a batch
                assert set(data[first : min(last, first + 8)].tolist()) <= tokens
    # The documents of 5, 9, 3 and 20 tokens: the second does not end in the first sequence, so the next begins with it.
    assert [row[1] for row in seen[:4]] == [100, 104, 112, 114]


@pytest.mark.parametrize("batches", ["windows", "documents"])
@pytest.mark.parametrize("read", [0, 1, 5, 8])
def test_it_goes_on_where_it_was(shards, batches, read):
    loader = DataLoader(shards, 2, 8, batches=batches, separator=BOS)
    rows(loader, read)
    state = json.loads(json.dumps(loader.state()))
    again = DataLoader(shards, 2, 8, batches=batches, separator=BOS, seed=7)
    again.set_state(state)
    assert rows(again, 20) == rows(loader, 20)
    assert again.epoch == loader.epoch
    with pytest.raises(UserError, match=f"batches was {batches} and is stream now.*kind of batches"):
        DataLoader(shards, 2, 8).set_state(state | {"sample_tokens": 16})


def test_a_state_from_before_there_were_kinds_is_of_a_stream(shards):
    loader = DataLoader(shards, 2, 8)
    rows(loader, 3)
    state = loader.state()
    del state["batches"]
    again = DataLoader(shards, 2, 8)
    again.set_state(state)
    assert rows(again, 4) == rows(loader, 4)


@pytest.mark.parametrize("batches", ["stream", "windows", "documents"])
def test_processes_together_read_what_one_reads(shards, batches):
    one = DataLoader(shards, 4, 4, batches=batches, separator=BOS)
    two = [DataLoader(shards, 2, 4, rank=rank, world=2, batches=batches, separator=BOS) for rank in range(2)]
    for _ in range(9):
        assert rows(one, 1) == rows(two[0], 1) + rows(two[1], 1)


@given(lengths=st.lists(st.integers(1, 40), min_size=12, max_size=40), T=st.integers(1, 17), B=st.integers(1, 3))
def test_sequences_of_documents_never_overlap_but_to_begin_a_document_again(tmp_path, lengths, T, B):
    tokens = stories(lengths)
    write_shard(tmp_path / "any.bin", tokens, 5000)
    assume(len(tokens) > T + 60)
    try:
        loader = DataLoader([tmp_path / "any.bin"], B, T, batches="documents", separator=BOS, shuffle=False)
    except UserError:
        reject()  # too few documents
    starts = loader._starts
    assert set(starts.tolist()) <= set(np.flatnonzero(tokens == BOS).tolist())
    documents = np.cumsum([0, *lengths])
    for a, b in pairwise(starts.tolist()):
        following = documents[np.searchsorted(documents, a, side="right")]
        assert following <= b  # it moves on
        assert b <= max(a + T, following)  # and leaves no document out


def test_what_cannot_be_is_one_line(shards, tmp_path):
    with pytest.raises(UserError, match="no token between documents: choose --batches windows"):
        DataLoader(shards, 2, 8, batches="documents")
    write_shard(tmp_path / "book.bin", np.array([BOS, *range(100, 400)]), 5000)
    with pytest.raises(
        UserError, match=r"book\.bin has 1 sequences of 8 tokens that begin.*a batch takes 2: lower the"
    ):
        DataLoader([tmp_path / "book.bin"], 2, 8, batches="documents", separator=BOS)
