"""Many minds in one batch: each has a story in the cache of one decoder, and the stories go on side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping

from llmpy import Engine
from llmpy.engine import prompt_ids, stop_ids_of
from llmpy.errors import UserError
from llmpy.formats import LoadedModel
from llmpy.sampling import Sampling
from llmpy.slots import History
from llmpy.streaming import TextStream
from llmpy.tokenizers import SentencePieceTokenizer, StreamDecoder

SAMPLING = Sampling(temperature=0.7, top_p=0.9, min_p=0.05)


class Minds:
    """`count` minds. `begin` and `hear` give one something to think of; `speak` makes many go on at once."""

    def __init__(self, model: LoadedModel, count: int, seed: int, backend: str, precision: str) -> None:
        if model.tokenizer is None:
            raise UserError(f"{model.source} has no tokenizer beside it, and villagers speak in words")
        engine = Engine(model, backend, precision=precision, overflow="stop")
        self.tokenizer, self.context = model.tokenizer, engine.context
        self._batch = engine.batch(count)
        self._histories = [History() for _ in range(count)]
        self._stories: list[list[int]] = [[] for _ in range(count)]
        self._next_seed = seed << 32
        self.tokens_made = 0
        self.seconds = 0.0

    def room(self, text: str) -> int:
        """How many tokens the context has left behind a story that begins like this."""
        return self.context - len(prompt_ids(self.tokenizer, text))

    def begin(self, mind: int, text: str) -> None:
        """A new story. What it has in common with the beginning of the last one is not read again."""
        self._stories[mind] = prompt_ids(self.tokenizer, text).tolist()

    def hear(self, mind: int, text: str) -> None:
        """The story goes on like this; the text begins with a space."""
        if isinstance(self.tokenizer, SentencePieceTokenizer):
            text = text.removeprefix(" ")  # it puts one before every text
        self._stories[mind] += self.tokenizer.encode(text).tolist()

    def speak(self, stops: Mapping[int, str], most: int) -> dict[int, str]:
        """How the stories of these minds go on, each up to its stop, all side by side.

        "" where the stop does not come within `most` tokens, or the context has no room for them; the story is as it
        was before then.
        """
        started, ends = time.perf_counter(), stop_ids_of(self.tokenizer)
        said, speakers = dict.fromkeys(stops, ""), {}
        for mind, stop in stops.items():
            story, self._next_seed = self._stories[mind], self._next_seed + 1
            if len(story) + most > self.context:
                continue
            request = self._batch.submit(
                story, SAMPLING, self._next_seed, most, ends, history=self._histories[mind]
            )  # fmt: skip
            speakers[request] = mind, TextStream(StreamDecoder(self.tokenizer, story[-1]), (stop,))
        for request, token in self._batch.run():
            mind, text = speakers[request]
            if token is None or text.stopped:
                continue
            self.tokens_made += 1
            said[mind] += text.feed(token)
            if text.stopped:
                self._batch.cancel(request)
        for request, (mind, text) in speakers.items():
            if text.stopped:
                self._stories[mind] += request.tokens
            else:
                said[mind] = ""
        self.seconds += time.perf_counter() - started
        return said
