"""Tokens to text as they are made: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llmpy.errors import UserError
from llmpy.tokenization.base import StreamDecoder


class StopStrings:
    """Passes text on until one of the strings is in it. What may be the beginning of one is held back.

    `stopped` is True from then on, and no more text comes. UserError for an empty string.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        if "" in strings:
            raise UserError("a stop string is empty: give the text to stop at")
        self._strings = tuple(strings)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that can be shown now: what was held back, and this, up to what a stop string may begin with."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for string in self._strings if (at := text.find(string)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        # The longest end of the text that a stop string begins with is where one may yet come.
        longest = max((len(string) - 1 for string in self._strings), default=0)
        held = min(longest, len(text))
        while held and not any(string.startswith(text[len(text) - held :]) for string in self._strings):
            held -= 1
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Returns the text that was still held back at the end because it could have begun a stop string."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """The text of one sample: `feed` it tokens, `finish` where they end; with nothing behind a stop string."""

    def __init__(self, decoder: StreamDecoder, stop_strings: Sequence[str] = ()) -> None:
        self._decoder, self._stops = decoder, StopStrings(stop_strings)

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def feed(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        return self._stops.feed(self._decoder.feed(token))

    def finish(self) -> str:
        """The rest of the text."""
        return self._stops.feed(self._decoder.finish()) + self._stops.finish()


def text_pieces(steps: Iterable[list[int | None]], stream: TextStream) -> Iterator[str]:
    """The engine's steps of one sample -> its text, piece by piece, until a stop string or the end."""
    for [token] in steps:
        if token is not None and (piece := stream.feed(token)):
            yield piece
        if stream.stopped:
            return
    if rest := stream.finish():
        yield rest
