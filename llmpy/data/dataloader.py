"""Batches from shards of tokens, with a state from which reading resumes exactly.

A batch has world * B sequences of T tokens (and the one that follows each, as its last target), of which each rank
takes its own B. Where in a shard they begin:

    stream     all of them follow one another, and whole batches are shuffled, as in llm.c
    windows    T tokens apart, too, but shuffled one by one, as in llama2.c: a batch is from all over the shard
    documents  with the token that begins a document, shuffled one by one; a sequence runs on into the documents that
               follow, and the next one begins with the first document that this one has not seen to its end. Of a
               document longer than T, only the first T tokens are seen.

What does not fill a batch at a shard's end is left out: where sequences are shuffled, others in each epoch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.formats.llmc.shards import check_vocabulary, open_shard, shard_files, shard_info
from llmpy.utils.rng import MersenneTwister

SHUFFLE_SEED = 42  # llm.c's
_CHECKED_AT_START = 1 << 24  # tokens of the first shard; every batch is checked besides


class DataLoader:
    """`next_batch()` gives x, y int32 [B, T], y being x moved on by one token. It starts over at the end of an epoch.

    Each epoch shuffles the shards, and what is in each shard, where `shuffle` is set; all ranks alike, so that together
    they read all of it. `batches` says what is shuffled (above); "documents" needs `separator`, the token that begins
    one. `vocab_size` None leaves ids unchecked. UserError for shards that are missing, damaged, of another vocabulary,
    or too short for a batch.
    """

    def __init__(
        self,
        pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        B: int,
        T: int,
        *,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        seed: int = SHUFFLE_SEED,
        vocab_size: int | None = None,
        batches: str = "stream",
        separator: int | None = None,
    ) -> None:
        self.B, self.T, self.rank, self.world, self.shuffle = B, T, rank, world, shuffle
        self.vocab_size, self.batches, self.separator = vocab_size, batches, separator
        if batches == "documents" and separator is None:
            raise UserError("this tokenizer has no token between documents: choose --batches windows or stream")
        self.files: list[Path] = shard_files(pattern)
        self.shard_tokens = [shard_info(path).tokens for path in self.files]
        self._sequences = [len(self._sequence_starts(i)) for i in range(len(self.files))]
        self.samples_per_shard = [sequences // (world * B) for sequences in self._sequences]
        if not any(self.samples_per_shard):
            raise self._too_few_documents() if batches == "documents" else self._too_short()
        if vocab_size is not None:
            check_vocabulary(open_shard(self.files[0])[:_CHECKED_AT_START], vocab_size, self.files[0])
        self._rng = MersenneTwister(seed)
        self._shard_order = list(range(len(self.files)))
        self.epoch = -1
        self._start_epoch()

    @property
    def sample_tokens(self) -> int:
        """Tokens that all ranks read together in one batch."""
        return self.world * self.B * self.T

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(self.shard_tokens)

    @property
    def batches_per_epoch(self) -> int:
        return sum(self.samples_per_shard)

    def reset(self) -> None:
        """Moves to the first batch of an epoch. With shuffle, the epoch has a new order; without, the same order."""
        self._start_epoch()

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """x, y int32 [B, T], C-contiguous, each a copy of its own."""
        while self._sample == self._samples:  # not only once: a shard may be too short for a sample
            if self._position + 1 == len(self.files):
                self._start_epoch()
            else:
                self._open_shard(self._position + 1)
        tokens = self._tokens[self._next_starts()[:, None] + np.arange(self.T + 1)]
        if self.vocab_size is not None and tokens.max() >= self.vocab_size:
            check_vocabulary(self._tokens, self.vocab_size, self._path)  # finds where, and says it
        return tokens[:, :-1].astype(np.int32, order="C"), tokens[:, 1:].astype(np.int32, order="C")

    def _next_starts(self) -> np.ndarray:
        """Returns the start of each sequence in this rank's next batch, int64 [B]."""
        shuffled_one_by_one = self.batches != "stream"
        at = self._sample if shuffled_one_by_one else int(self._order[self._sample])
        mine = np.arange(self.B) + (at * self.world + self.rank) * self.B
        self._sample += 1
        return self._starts[self._order[mine] if shuffled_one_by_one else mine]

    def state(self) -> dict[str, Any]:
        """Returns the position in the data as JSON types; `set_state` resumes from it."""
        return {
            "epoch": self.epoch,
            "shard_order": list(self._shard_order),
            "position": self._position,  # in shard_order
            "sample": self._sample,  # the next one inside the shard
            "rng": self._shard_rng,  # as it was before the samples of the shard were shuffled
            "shard_tokens": list(self.shard_tokens),
            "sample_tokens": self.sample_tokens,
            "shuffle": self.shuffle,
            "batches": self.batches,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes where `state` was taken; raises UserError if the shards or the sizes have changed."""
        state = {"batches": "stream"} | state  # older states do not say it
        for key, now in (
            ("shard_tokens", self.shard_tokens),
            ("sample_tokens", self.sample_tokens),
            ("shuffle", self.shuffle),
            ("batches", self.batches),
        ):
            if state.get(key) != now:
                raise UserError(
                    f"cannot go on in the data: {key} was {state.get(key)} and is {now} now; give the same shards, "
                    f"batch size, sequence length, kind of batches and number of processes as before"
                )
        try:
            order, position, sample = list(state["shard_order"]), int(state["position"]), int(state["sample"])
            if sorted(order) != list(range(len(self.files))) or not 0 <= position < len(order):
                raise ValueError("no such order of shards")
            if not 0 <= sample <= self.samples_per_shard[order[position]]:
                raise ValueError(f"shard {order[position]} has no sample {sample}")
            self._rng.set_state(state["rng"])
            self.epoch = int(state["epoch"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"cannot go on in the data: its saved state is damaged ({error})") from error
        self._shard_order = order
        self._open_shard(position)
        self._sample = sample

    def _start_epoch(self) -> None:
        self.epoch += 1
        if self.shuffle:  # on top of the last epoch's order, as llm.c does
            self._shard_order = [self._shard_order[i] for i in self._rng.permutation(len(self.files))]
        self._open_shard(0)

    def _open_shard(self, position: int) -> None:
        """The shard at `position` of this epoch's order, at its first sample."""
        self._position, self._sample = position, 0
        shard = self._shard_order[position]
        self._path = self.files[shard]
        self._tokens = open_shard(self._path)
        self._shard_rng = self._rng.state()
        self._samples = self.samples_per_shard[shard]
        self._starts = self._sequence_starts(shard)
        shuffled = len(self._starts) if self.batches != "stream" else self._samples
        self._order = np.array(self._rng.permutation(shuffled) if self.shuffle else range(shuffled), np.int64)

    def _sequence_starts(self, shard: int) -> np.ndarray:
        """Returns the start of each sequence of a shard, int64 [n]."""
        room = self.shard_tokens[shard] - self.T  # a sequence has a target behind its last token
        if self.batches != "documents":
            return np.arange(0, max(room, 0), self.T)
        starts = np.flatnonzero(open_shard(self.files[shard]) == self.separator)
        # From each document to the one that holds the first token it does not see, unless that is its own.
        here = np.arange(len(starts))
        following = np.maximum(np.searchsorted(starts, starts + self.T, side="right") - 1, here + 1).tolist()
        chain, document = [], 0
        while document < len(starts) and starts[document] < room:
            chain.append(document)
            document = following[document]
        return starts[chain]

    def _too_short(self) -> UserError:
        tokens = max(self.shard_tokens)
        path = self.files[self.shard_tokens.index(tokens)]
        across = f" x {self.world} processes" if self.world > 1 else ""
        limits = {
            "the sequence length": (tokens - 1) // (self.world * self.B),
            "the batch size": (tokens - 1) // (self.world * self.T),
        }
        ways = " or ".join(f"{what} to at most {limit}" for what, limit in limits.items() if limit)
        return UserError(
            f"{path} is too short: {tokens} tokens, but one batch of {self.B} x {self.T}{across} takes "
            f"{self.sample_tokens + 1}: lower {ways or 'both batch size and sequence length'}, or give more text"
        )

    def _too_few_documents(self) -> UserError:
        most = max(self._sequences)
        return UserError(
            f"{self.files[self._sequences.index(most)]} has {most} sequences of {self.T} tokens that begin with a "
            f"document, and a batch takes {self.world * self.B}: lower the batch size, or choose --batches windows"
        )
