"""A conversation: what was said, and the model's answers to it, piece by piece. Who speaks on what is the caller's."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.inference.chat_template import ChatTemplate, Message
from llmpy.inference.engine import Engine
from llmpy.inference.kv_cache import History
from llmpy.inference.text_stream import TextStream, text_pieces
from llmpy.tokenization.base import StreamDecoder
from llmpy.utils.atomic_files import write_text_atomic

ROOM = 4  # one part in so many of the context is kept for the answer


class Conversation:
    """Messages of a conversation. `forgotten` counts messages dropped from a full context; the system text stays.

    `max_tokens` bounds an answer; None bounds it by the context. With `max_tokens`, an answer may continue past the
    context, as the engine's `overflow` says. `options` are those of `Engine.generate`. Every answer draws with its own
    seed, counted up from `seed`.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        system: str | None = None,
        max_tokens: int | None = None,
        seed: int = 42,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.engine, self.template = engine, template
        self.max_tokens, self.seed, self.stop_strings, self.options = max_tokens, seed, stop_strings, options
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._turns: list[Message] = []
        self._history = History()
        self.forgotten = 0

    @property
    def messages(self) -> list[Message]:
        """Messages that the prompt contains."""
        return [*self._system, *self._turns]

    def reset(self) -> None:
        """Begin anew, with the system's text."""
        self._turns, self.forgotten, self._history = [], 0, History()

    def answer(self, text: str) -> Generator[str, None, None]:
        """The model's answer to a message, in pieces as they are made.

        Closed early, or left by an exception, what was said so far is the answer; before the first word, the message is
        forgotten. Raises UserError for a message that is too long for the context or that the template refuses.
        """
        asked = {"role": "user", "content": text}
        ids = self._fit(asked)
        room = self.engine.context - len(ids)
        steps = self.engine.generate(
            ids,
            room if self.max_tokens is None else self.max_tokens,
            seed=self.seed,
            stop_ids=self.template.stop_ids,
            history=self._history,  # what was said before is not read again
            **self.options,
        )
        self.seed += 1
        stream = TextStream(StreamDecoder(self.template.tokenizer, int(ids[-1])), self.stop_strings)
        said = ""
        whole = False
        try:
            for piece in text_pieces(steps, stream):
                piece = piece if said else piece.lstrip()  # white space behind the template's last token is its own
                said += piece
                if piece:
                    yield piece
            whole = True
        finally:
            if said or whole:
                self._turns += [asked, {"role": "assistant", "content": said}]

    def _fit(self, asked: Message) -> np.ndarray:
        """The tokens of the conversation with a new message; the oldest turns go until there is room for an answer."""
        context = self.engine.context
        room = max(1, min(self.max_tokens or context, context // ROOM))
        first = 0
        while True:
            ids = self.template.encode([*self._system, *self._turns[first:], asked])
            if len(ids) + room <= context:
                break
            if first >= len(self._turns):
                raise UserError(
                    f"the message is too long: {len(ids)} tokens with the template, and of the model's context of"
                    f" {context} {room} are kept for the answer: say it shorter"
                )
            first += 2
        del self._turns[:first]
        self.forgotten += first
        return ids

    def save(self, path: Path, model: str) -> None:
        """Writes JSON: the model, the template and the messages. UserError where that cannot be done."""
        fields = {"model": model, "template": self.template.name, "messages": self.messages}
        write_text_atomic(path, json.dumps(fields, ensure_ascii=False, indent=1) + "\n")
