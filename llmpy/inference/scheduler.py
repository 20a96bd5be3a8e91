"""Many sequences at once: requests wait, enter a slot of the cache as one is free, are continued side by side by a
token a step, and leave the slot as they end. Token ids only.

    batch = Engine(model).batch(slots=8)
    for prompt in prompts:
        batch.submit(prompt, Sampling(temperature=0.8), stop_ids=stop_ids)
    for request, token in batch.run():
        ...
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmpy.errors import UserError
from llmpy.inference.kv_cache import History, Slot, Slots
from llmpy.inference.sampling import RecentTokens, Sampling, log_probability, sample
from llmpy.models.decoder import Decoder
from llmpy.utils.rng import Xorshift

OVERFLOWS = ("roll", "reread", "stop")
SINKS = 4  # the first tokens, that models look at where they have nothing to look at (Xiao et al. 2023, StreamingLLM)

Event = tuple["Request", int | None]


@dataclass(eq=False, slots=True)
class Request:
    """A prompt to be continued, and what came of it.

    `tokens` are those made so far, `logprobs` their log-probabilities (see Engine.generate) where they were asked for.
    `ended` says why it is over: "stop" (a stop id, which is not among the tokens), "length" (max_tokens), "context" (it
    is full), "cancelled", "failed" (a step did); None: it is not over.
    """

    prompt: list[int]
    sampling: Sampling
    random: Xorshift
    max_tokens: int | None
    stop_ids: frozenset[int]
    history: History = field(repr=False)
    logprobs: list[float] | None
    recent: RecentTokens | None  # None: no penalty falls on them
    tokens: list[int] = field(default_factory=list)
    ended: str | None = None
    slot: Slot = field(init=False, repr=False)  # from when it runs


class Batch:
    """Continues up to `decoder.sequences` requests side by side; others wait for their turn.

    Tokens come out of `step`. Only `step`, `run` and `forget` touch the cache and belong to one thread; `submit` and
    `cancel` may be called from any. What a request gives depends on its prompt, settings and seed, and not on what runs
    beside it.

    `overflow` is what happens to a text that fills the context. "roll": the first SINKS tokens stay, and of the others
    the older half is forgotten (the default where the decoder can). "reread": the last half is read again as if it were
    all there is. "stop": it ends there. `vocab_size`: ids from there on, of a vocabulary padded to a round number, are
    never made.
    """

    def __init__(self, decoder: Decoder, vocab_size: int | None = None, overflow: str | None = None) -> None:
        self.decoder, self.context = decoder, decoder.config.context
        self.overflow = overflow_of(decoder.can_shift, overflow)
        self._vocab_size = min(decoder.config.vocab_size, vocab_size or decoder.config.vocab_size)
        self._sinks = min(SINKS, self.context // 2)
        self._slots = Slots(decoder)
        self._lock = threading.Lock()  # of the two lists that other threads write
        self._waiting: list[Request] = []
        self._cancelled: list[Request] = []
        self._running: list[Request] = []
        self._full: list[Request] = []  # those of the running whose context is full
        # Of the running, as the decoder takes them: newest tokens, their positions, slots. Kept from step to step.
        self._rows = np.zeros((3, decoder.sequences), np.int32)
        self._changed = False  # the rows are not those of the running any more

    @property
    def idle(self) -> bool:
        """True if no request runs or waits."""
        return not self._running and not self._waiting

    def submit(
        self,
        prompt: Sequence[int] | np.ndarray,
        sampling: Sampling | None = None,
        seed: int = 42,
        max_tokens: int | None = 256,
        stop_ids: Collection[int] = (),
        *,
        logprobs: bool = False,
        history: History | None = None,
    ) -> Request:
        """Puts a prompt in the queue. With `max_tokens` None, generation ends at a stop id or with the context.

        With a `history`, the prompt begins with the history's tokens (tokens still in its slot need no prefill), and
        prompt and answer become the history: `submit([*history.tokens, *more], history=history)` continues it. A
        history runs one request at a time; further ones wait. Raises UserError for a request that cannot run.
        """
        ids = checked_prompt(prompt, self.decoder.config.vocab_size, self.context, self.overflow)
        sampling = sampling or Sampling()
        recent = None
        if sampling.repetition_penalty != 1:
            recent = RecentTokens(sampling.repetition_window, ids[-sampling.repetition_window :])
        request = Request(
            prompt=ids,
            sampling=sampling,
            random=Xorshift(seed),
            max_tokens=max_tokens,
            stop_ids=frozenset(stop_ids),
            history=history or History(kept=False),
            logprobs=[] if logprobs else None,
            recent=recent,
        )
        if max_tokens is not None and max_tokens < 1:
            request.ended = "length"
            return request
        with self._lock:
            self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request before the next step, whether it runs or waits; nothing where it is over."""
        with self._lock:
            self._cancelled.append(request)

    def run(self) -> Iterator[Event]:
        """Steps until nothing runs and nothing waits -> all their events."""
        while not self.idle:
            yield from self.step()

    def step(self) -> list[Event]:
        """One more token for every request that runs, then the first one of those that can enter a slot.

        The last event of a request has it `ended`; None instead of a token where it ended without one. Raises UserError
        where the model's output is no number; all that runs is over then.
        """
        events: list[Event] = []
        try:
            if self._cancelled:
                self._take_out_cancelled(events)
            if self._running:
                self._continue(events)
            if self._waiting:
                self._admit(events)
        except BaseException:  # KeyboardInterrupt too: nothing stays half done
            for request in self._running:
                self._end(request, request.ended or "failed")
            self._running, self._full = [], []
            with self._lock:
                self._waiting = [request for request in self._waiting if request.ended is None]
            raise
        return events

    def forget(self) -> None:
        """Clears all slots except those of kept histories; call this after the parameters changed."""
        self._take_out_cancelled([])
        self._slots.forget()
        self.decoder.renew()

    # ---- the requests that run -------------------------------------------------------------------------------------

    def _continue(self, events: list[Event]) -> None:
        running = self._running
        if self._full:
            running = self._make_room(events)
        n = len(running)
        if self._changed:
            for row, request in enumerate(running):
                slot = request.slot
                self._rows[:, row] = slot.tokens[-1], slot.held, slot.number
            self._changed = running is not self._running
        if n:
            tokens, positions, slots = self._rows[:, :n]
            logits = self.decoder.decode(tokens, positions, slots)
            for request in running:
                request.slot.held += 1
            positions += 1
            for row, request in enumerate(running):
                token = self._draw(request, logits[row], events)
                if token is not None:
                    tokens[row] = token
        if self._changed:
            self._running = [request for request in self._running if request.ended is None]

    def _make_room(self, events: list[Event]) -> list[Request]:
        """Makes room in full contexts; returns the requests that still need a decode step (others got a token)."""
        full, self._full, self._changed = [request for request in self._full if request.ended is None], [], True
        for request in full:
            if self.overflow == "roll":
                self._slots.roll(request.slot, self._sinks, max(1, (self.context - self._sinks) // 2))
            else:
                half = request.slot.tokens[-max(1, self.context // 2) :]
                self._draw(request, self._slots.read(request.slot, half), events)
        return self._running if self.overflow == "roll" else [r for r in self._running if r not in full]

    def _draw(self, request: Request, logits: np.ndarray, events: list[Event]) -> int | None:
        """The next token of a request, by its logits; None where it stops."""
        logits = logits[: self._vocab_size]
        token = sample(logits, request.sampling, request.random, request.recent or ())
        if token in request.stop_ids:
            self._end(request, "stop")
            events.append((request, None))
            return None
        request.tokens.append(token)
        request.slot.tokens.append(token)
        if request.recent is not None:
            request.recent.add(token)
        if request.logprobs is not None:
            request.logprobs.append(log_probability(logits, token))
        if len(request.tokens) == request.max_tokens:
            self._end(request, "length")
        elif request.slot.held == self.context:
            if self.overflow == "stop":
                self._end(request, "context")
            else:
                self._full.append(request)
        events.append((request, token))
        return token

    def _end(self, request: Request, why: str) -> None:
        request.ended, self._changed = why, True
        self._slots.leave(request.slot)

    def _take_out_cancelled(self, events: list[Event]) -> None:
        with self._lock:
            cancelled, self._cancelled = self._cancelled, []
            for request in cancelled:
                if request.ended is not None:
                    continue
                if request in self._running:
                    self._end(request, "cancelled")
                request.ended = "cancelled"
                events.append((request, None))
            self._waiting = [request for request in self._waiting if request.ended is None]
        self._running = [request for request in self._running if request.ended is None]

    # ---- the requests that wait ------------------------------------------------------------------------------------

    def _admit(self, events: list[Event]) -> None:
        """Requests enter slots in the order in which they came; one whose history is busy lets others go first."""
        with self._lock:
            waiting = list(self._waiting)
        read: tuple[list[int], Slot, np.ndarray] | None = None  # the last prompt: its slot, its logits
        for request in waiting:
            if request.history.busy:
                continue
            slot = self._slots.enter(request.history)
            if slot is None:
                break
            request.slot, self._changed = slot, True
            self._running.append(request)
            request.history.busy = True
            with self._lock:
                self._waiting.remove(request)
            prompt = self._fitted(slot, request.prompt)
            if read is None or read[0] != prompt:
                logits = self._slots.read(slot, prompt)
            else:
                logits = read[2]
                self._slots.copy(read[1], slot, prompt)
            read = (prompt, slot, logits) if slot.read == len(prompt) else None
            self._draw(request, logits, events)
        self._running = [request for request in self._running if request.ended is None]

    def _fitted(self, slot: Slot, prompt: list[int]) -> list[int]:
        """Returns the part of a prompt that fits the context, and drops the rest from the cache slot too."""
        too_many, keep = len(prompt) - self.context, self._sinks
        if too_many <= 0:
            return prompt
        if self.overflow != "roll":
            return prompt[too_many:]
        drop = max(too_many, (self.context - keep) // 2)
        if slot.owner is not None and slot.common(prompt, slot.owner) >= keep + drop:
            self._slots.roll(slot, keep, drop)
        else:
            drop = too_many
        return prompt[:keep] + prompt[keep + drop :]


def overflow_of(can_shift: bool, overflow: str | None) -> str:
    """Returns the action for a full context. Raises UserError for an unknown action or one that the decoder lacks."""
    if overflow is None:
        return "roll" if can_shift else "reread"
    if overflow not in OVERFLOWS:
        raise UserError(f"overflow is {', '.join(OVERFLOWS[:-1])} or {OVERFLOWS[-1]}, not {overflow!r}")
    if overflow == "roll" and not can_shift:
        raise UserError("GPT-2's positions are learned, its context cannot roll: use reread or stop")
    return overflow


def checked_prompt(prompt: Sequence[int] | np.ndarray, vocab_size: int, context: int, overflow: str) -> list[int]:
    """Returns the prompt's ids. Raises UserError for an empty or too long prompt, and for an unknown id."""
    ids = np.asarray(prompt, np.int64)
    if ids.ndim != 1 or not len(ids):
        raise UserError("the prompt has no tokens: begin with the token that ends a text")
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = next(token for token in ids.tolist() if not 0 <= token < vocab_size)
        raise UserError(
            f"the prompt has token {wrong}, the model a vocabulary of {vocab_size}: is it the right tokenizer?"
        )
    if overflow == "stop" and len(ids) > context:
        raise UserError(f"the prompt has {len(ids)} tokens, more than the context of {context}: shorten it")
    return ids.tolist()
