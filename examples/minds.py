"""Many minds in one batch: each has a slot in the cache of one decoder, and a story in it that goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np

from llmpy import kernels
from llmpy.engine import prompt_ids
from llmpy.errors import UserError
from llmpy.formats import LoadedModel
from llmpy.models import new_decoder
from llmpy.rng import Xorshift
from llmpy.sampling import Sampling, sample
from llmpy.streaming import TextStream
from llmpy.tokenizers import SentencePieceTokenizer, StreamDecoder
from llmpy.weights import BFloat16Weights


class Minds:
    """`count` minds in one batch. `begin` and `hear` give a mind what to think of, `speak` makes many go on at once."""

    def __init__(self, model: LoadedModel, count: int, seed: int, backend: str, precision: str) -> None:
        if model.tokenizer is None:
            raise UserError(f"{model.source} has no tokenizer beside it, and villagers speak in words")
        self.tokenizer = model.tokenizer
        copy = BFloat16Weights.of(kernels.load(backend), model.parameters) if precision == "bfloat16" else None
        self._decoder = new_decoder(model.config, model.parameters, backend, count, copy)
        self._context = self._decoder.config.context
        self._sampling = Sampling(temperature=0.7, top_p=0.9, min_p=0.05)
        self._random = [Xorshift(seed * 1_000_003 + i + 1) for i in range(count)]
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._read = [0] * count  # how many of them the cache has
        self.tokens_read = self.tokens_made = 0
        self.seconds = 0.0

    def room(self, text: str) -> int:
        """How many tokens the context has left behind a story that begins like this."""
        return self._context - len(prompt_ids(self.tokenizer, text))

    def begin(self, mind: int, text: str) -> None:
        """A new story for a mind. What its old one begins with, too, is not read again."""
        old, new = self._tokens[mind][: self._read[mind]], prompt_ids(self.tokenizer, text).tolist()
        differs = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        self._tokens[mind], self._read[mind] = new, min(differs, len(new) - 1)

    def hear(self, mind: int, text: str) -> None:
        """The story goes on like this; the text begins with a space."""
        if isinstance(self.tokenizer, SentencePieceTokenizer):
            text = text.removeprefix(" ")  # it puts one before every text
        self._tokens[mind] += self.tokenizer.encode(text).tolist()

    def speak(self, stops: Mapping[int, str], most: int) -> dict[int, str]:
        """How the stories of these minds go on, side by side, each up to its stop; "" where that does not come within
        `most` tokens, and then the mind is as it was before."""
        started = time.perf_counter()
        before = {mind: len(self._tokens[mind]) for mind in stops}
        running = {
            mind: TextStream(StreamDecoder(self.tokenizer, self._tokens[mind][-1]), (stop,))
            for mind, stop in stops.items()
        }
        said = dict.fromkeys(stops, "")
        for step in range(most):
            running = {mind: text for mind, text in running.items() if len(self._tokens[mind]) < self._context}
            if not running:
                break
            for mind, logits in zip(running, self._next(list(running), reading=step == 0), strict=True):
                token = sample(logits[: self.tokenizer.vocab_size], self._sampling, self._random[mind])
                self._tokens[mind].append(token)
                said[mind] += running[mind].feed(token)
                self.tokens_made += 1
            ended = {mind for mind in running if self._tokens[mind][-1] in self.tokenizer.stop_ids}
            done = {mind for mind, text in running.items() if text.stopped}
            for mind in ended - done:
                self._forget(mind, before[mind], said)
            running = {mind: text for mind, text in running.items() if mind not in ended | done}
        for mind in running:
            self._forget(mind, before[mind], said)
        self.seconds += time.perf_counter() - started
        return said

    def _forget(self, mind: int, length: int, said: dict[int, str]) -> None:
        said[mind] = ""
        del self._tokens[mind][length:]
        self._read[mind] = min(self._read[mind], length - 1)

    def _next(self, minds: list[int], reading: bool) -> Iterable[np.ndarray]:
        """The logits [V] of each mind's next token: what has not been read is read, one token of all in one pass."""
        if reading:
            for mind in minds:
                new = np.array(self._tokens[mind][self._read[mind] :], np.int32)
                self.tokens_read += len(new)
                yield self._decoder.prefill(new, mind, self._read[mind])
                self._read[mind] += len(new)
            return
        newest, at = [self._tokens[mind][-1] for mind in minds], [self._read[mind] for mind in minds]
        yield from self._decoder.decode(*(np.array(numbers, np.int32) for numbers in (newest, at, minds)))
        for mind in minds:
            self._read[mind] += 1
