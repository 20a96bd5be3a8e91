"""Ten minutes for everything: each part has its share of the time that is left when it begins.

What one part does not need goes to those after it, and none can take the time of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Budget:
    """`shares` are relative, in the order in which the parts will begin; `now` is the clock, in seconds."""

    def __init__(self, seconds: float, shares: Mapping[str, float], now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end, self._left = now, now() + seconds, dict(shares)

    def begin(self, name: str) -> float:
        """The seconds that a part has from now on. Parts before it that never began are given up."""
        for earlier in list(self._left):
            if earlier == name:
                break
            del self._left[earlier]
        whole = sum(self._left.values())
        return max(0.0, self._end - self._now()) * self._left.pop(name) / whole

    def divided(self) -> dict[str, float]:
        """The seconds of each part that has not begun, if every earlier part uses all of its time."""
        whole, left = sum(self._left.values()), max(0.0, self._end - self._now())
        return {name: left * share / whole for name, share in self._left.items()}
