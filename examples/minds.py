"""Many minds in one batch: each has a story in a slot of one decoder's KV cache, and all stories advance together.

What happens is told by tales, generators that yield wishes and are sent what the mind says: `said = yield Wish(...)`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

from llmpy import Engine
from llmpy.errors import UserError
from llmpy.formats.load import LoadedModel
from llmpy.inference.engine import prompt_ids, stop_ids_of
from llmpy.inference.kv_cache import History
from llmpy.inference.sampling import Sampling
from llmpy.inference.scheduler import Request
from llmpy.inference.text_stream import TextStream
from llmpy.tokenization.base import SentencePieceTokenizer, StreamDecoder

SAMPLING = Sampling(temperature=0.7, top_p=0.9, min_p=0.05)


@dataclass(frozen=True)
class Wish:
    """A request that a mind say something, up to the text `stop`, in at most `most` tokens."""

    mind: int
    stop: str
    most: int


@dataclass
class Text:
    stream: TextStream
    said: str = ""


Tale = Generator[Wish, str, None]


class Minds:
    """A group of `count` minds. `begin` and `hear` add text to one story; `live` generates for all that are asked."""

    def __init__(self, model: LoadedModel, count: int, seed: int, backend: str, precision: str) -> None:
        if model.tokenizer is None:
            raise UserError(f"{model.source} has no tokenizer beside it, and villagers speak in words")
        engine = Engine(model, backend, precision=precision, overflow="stop")
        self.tokenizer, self.context = model.tokenizer, engine.context
        self._batch = engine.batch(count)
        self._histories = [History() for _ in range(count)]
        self._stories: list[list[int]] = [[] for _ in range(count)]
        self._seed, self._asked = seed, [0] * count
        self._ends = stop_ids_of(self.tokenizer)
        self._waiting: dict[Request, tuple[Tale, Wish, Text]] = {}
        self.tokens_made = self.tokens_read = 0
        self.seconds = 0.0

    @property
    def tokens(self) -> int:
        """Made and read."""
        return self.tokens_made + self.tokens_read

    def room(self, text: str) -> int:
        """Returns how many tokens the context has left behind a story with this opening."""
        return self.context - len(prompt_ids(self.tokenizer, text))

    def begin(self, mind: int, text: str) -> None:
        """A new story. What it has in common with the beginning of the last one is not read again."""
        self._stories[mind] = prompt_ids(self.tokenizer, text).tolist()

    def hear(self, mind: int, text: str) -> None:
        """Appends a text, which begins with a space, to the story."""
        if isinstance(self.tokenizer, SentencePieceTokenizer):
            text = text.removeprefix(" ")  # it puts one before every text
        self._stories[mind] += self.tokenizer.encode(text).tolist()

    def live(self, tales: Iterable[Tale]) -> None:
        """Runs all tales to their ends, side by side: the wishes of all minds are decoded in one batch, and a tale
        resumes as soon as its own wish is answered.

        The answer to a wish is the continuation of the mind's story up to the stop text. The answer is "" where the
        stop text does not come within the limit or the context is full; the story then stays as before.
        """
        started = time.perf_counter()
        for tale in tales:
            self._ask(tale, None)
        while self._waiting:
            for request, token in self._batch.step():
                if request not in self._waiting:  # it is said already
                    continue
                tale, wish, text = self._waiting[request]
                if token is not None:
                    self.tokens_made += 1
                    text.said += text.stream.feed(token)
                if text.stream.stopped:
                    self._stories[wish.mind] += request.tokens
                    self._batch.cancel(request)
                if text.stream.stopped or request.ended is not None:
                    del self._waiting[request]
                    self._ask(tale, text.said if text.stream.stopped else "")
        self.seconds += time.perf_counter() - started

    def _ask(self, tale: Tale, answer: str | None) -> None:
        """The tale up to its next wish that can be asked for."""
        with suppress(StopIteration):
            wish = next(tale) if answer is None else tale.send(answer)
            while len(self._stories[wish.mind]) + wish.most > self.context:
                wish = tale.send("")
            story = self._stories[wish.mind]
            history = self._histories[wish.mind]
            known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(story, history.tokens, strict=False)))
            self.tokens_read += max(1, len(story) - known)
            self._asked[wish.mind] += 1
            seed = (self._seed << 32) + (wish.mind << 16) + self._asked[wish.mind]
            request = self._batch.submit(story, SAMPLING, seed, wish.most, self._ends, history=history)
            text = Text(TextStream(StreamDecoder(self.tokenizer, story[-1]), (wish.stop,)))
            self._waiting[request] = tale, wish, text
