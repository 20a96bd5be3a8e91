"""KV-cache slots: ownership, eviction, and reuse of shared prefixes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llmpy.models.decoder import Decoder

# Shared prefixes are copied in multiples of this many tokens, and at least as many tokens are left to prefill: a tiny
# prefill uses another kernel, and the bits of a text must not depend on the other texts of the batch.
SHARED = 16


@dataclass(eq=False, slots=True)
class History:
    """A text that continues over several requests; `tokens` holds the prompts and answers that the model attends to.

    The history keeps its slot of the KV cache until other texts need the slot; afterwards its prompt is prefilled anew.
    """

    tokens: list[int] = field(default_factory=list)
    kept: bool = True  # False: nobody will continue this history
    busy: bool = False  # a request is at work on it


@dataclass(eq=False, slots=True)
class Slot:
    """One sequence of the cache: it has the keys and values of the first `held` of `tokens`, a text of `of`.

    The first `read` of them were read as a prompt is, by anyone: who begins alike may have them.
    """

    number: int
    owner: History | None = None
    of: History | None = None
    tokens: list[int] = field(default_factory=list)
    held: int = 0
    read: int = 0
    left: int = 0  # when the last request left it, counted in such events

    def common(self, prompt: list[int], of: History) -> int:
        """Counts the leading tokens of the prompt that the slot already holds for this history."""
        return _common(self.tokens, prompt, self.held) if self.of is of else 0

    def clear(self) -> None:
        self.of, self.tokens, self.held, self.read = None, [], 0, 0


class Slots:
    """The slots of a decoder and the histories in them."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._slots = [Slot(number) for number in range(decoder.sequences)]
        self._events = 0

    def enter(self, history: History) -> Slot | None:
        """Returns a slot for the history: its own, an empty one, or the one that has been idle longest.

        Slots of histories that nobody will continue are taken first. Returns None if all slots are busy.
        """
        idle = [slot for slot in self._slots if slot.owner is None or not slot.owner.busy]

        def preference(slot: Slot) -> tuple[int, int]:
            if slot.owner is None or slot.owner is history:
                return int(slot.owner is None), slot.left
            return 2 + slot.owner.kept, slot.left

        slot = min(idle, key=preference, default=None)
        if slot is not None:
            slot.owner = history
        return slot

    def leave(self, slot: Slot) -> None:
        """The request that ran here is over; what was read stays."""
        self._events += 1
        slot.left = self._events
        if slot.owner is not None:
            slot.owner.busy = False

    def forget(self) -> None:
        """Clears the slots of all histories that nobody will continue."""
        for slot in self._slots:
            if slot.owner is None or not (slot.owner.busy or slot.owner.kept):
                slot.owner = None
                slot.clear()

    def read(self, slot: Slot, tokens: list[int]) -> np.ndarray:
        """The slot's history becomes `tokens` -> logits [V] after them. What any slot holds of them is not read."""
        history = slot.owner
        assert history is not None
        known = min(slot.common(tokens, history), len(tokens) - 1)
        source, shared = self._longest_beginning(history, tokens)
        if shared > known:
            self._take(source, slot, tokens[:shared])
            known = shared
        slot.of, slot.tokens, slot.held, slot.read = history, tokens[:known], known, min(slot.read, known)
        logits = self.decoder.prefill(np.array(tokens[known:], np.int32), slot.number, known)
        history.tokens = slot.tokens = list(tokens)
        slot.held = len(tokens)
        if slot.read == known and known % SHARED == 0 and (known == 0 or len(tokens) - known >= SHARED):
            slot.read = len(tokens)
        return logits

    def copy(self, source: Slot, slot: Slot, tokens: list[int]) -> None:
        """The slot's history becomes `tokens`, which another slot holds."""
        assert slot.owner is not None
        self._take(source, slot, tokens)
        slot.owner.tokens = slot.tokens

    def _take(self, source: Slot, slot: Slot, tokens: list[int]) -> None:
        if source is not slot:
            slot.clear()
            self.decoder.copy(source.number, len(tokens), [slot.number])
        slot.of, slot.tokens, slot.held, slot.read = slot.owner, list(tokens), len(tokens), len(tokens)

    def _longest_beginning(self, history: History, tokens: list[int]) -> tuple[Slot, int]:
        """Finds the longest prefix of these tokens in other slots: (slot, number of shared tokens)."""
        best, most = (self._slots[0], 0), len(tokens) - SHARED
        for slot in self._slots:
            if slot.of is history or slot.tokens[:SHARED] != tokens[:SHARED]:
                continue
            shared = _common(slot.tokens, tokens, min(slot.read, most)) // SHARED * SHARED
            if shared > best[1]:
                best = slot, shared
        return best

    def roll(self, slot: Slot, keep: int, drop: int) -> None:
        """Forget `drop` of its history's tokens behind the first `keep`."""
        held, slot.held = slot.held, keep  # no more is sure until it is done
        slot.read = min(slot.read, keep)
        self.decoder.shift(slot.number, keep, drop)
        del slot.tokens[keep : keep + drop]
        slot.held = held - drop


def _common(a: list[int], b: list[int], most: int) -> int:
    """The length of the beginning that both have, up to `most`."""
    low, high = 0, min(most, len(a), len(b))
    if a[:high] == b[:high]:
        return max(high, 0)
    while high - low > 1:  # both begin with the same `low`, and not with the same `high`
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
