"""Generation: token ids in, token ids out. The prompt is read in one pass, each token after it costs one step.

The engine knows nothing about text but for `stream`, which puts a tokenizer on either side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import numpy as np

from llmpy import kernels
from llmpy.config import ModelConfig
from llmpy.errors import UserError
from llmpy.models import Decoder, new_decoder
from llmpy.parameters import Parameters
from llmpy.rng import Xorshift
from llmpy.sampling import Sampling, log_probability, sample
from llmpy.streaming import TextStream, text_pieces
from llmpy.tokenizers import StreamDecoder, Tokenizer
from llmpy.weights import BFloat16Weights


class Model(Protocol):
    """What the engine needs of a model: `llmpy.load` gives one, a model in training is one."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def parameters(self) -> Parameters: ...


class Engine:
    """Generates with the current parameters of a model. The cache is taken at the first call and kept.

    `precision` is bfloat16 or float32; a model in training has its own.
    """

    def __init__(
        self,
        model: Model,
        backend: str = "cpu",
        tokenizer: Tokenizer | None = None,
        precision: str = "float32",
    ) -> None:
        self.model, self.backend = model, backend
        self.weights = getattr(model, "weights", None)
        if self.weights is None and precision == "bfloat16":
            self.weights = BFloat16Weights.of(kernels.load(backend), model.parameters)
        self.tokenizer: Tokenizer | None = tokenizer or getattr(model, "tokenizer", None)
        self._decoder: Decoder | None = None

    @property
    def context(self) -> int:
        """How many tokens can be looked back at: what the model was trained for, or what there is memory for."""
        return (self._decoder or self._take_decoder(1)).config.context

    def generate(
        self,
        prompt: Sequence[int] | np.ndarray,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        seed: int = 42,
        stop_ids: Collection[int] = (),
        num_samples: int = 1,
        *,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
        logprobs: list[list[float | None]] | None = None,
    ) -> Iterator[list[int | None]]:
        """Continue the prompt: for every step one id a sample, None for a sample that has stopped; ends when all have.

        Sample i draws with seed + i, so that it is the one that the seed alone would give. Where the context is full,
        its last half is kept and read again. A list `logprobs` gets, step by step, the natural logarithms of the
        probabilities that the model itself gave the ids, before temperature, penalty and all that leaves tokens out.
        `llmpy.sampling.Sampling` says what the other settings do. Raises UserError at once for what cannot be done.
        """
        prompt = np.asarray(prompt, np.int64)
        V = self.model.config.vocab_size
        if prompt.ndim != 1 or not len(prompt):
            raise UserError("the prompt has no tokens: begin with the token that ends a text")
        if prompt.min() < 0 or prompt.max() >= V:
            wrong = next(int(token) for token in prompt if not 0 <= token < V)
            raise UserError(f"the prompt has token {wrong}, the model a vocabulary of {V}: is it the right tokenizer?")
        if num_samples < 1 or max_tokens < 0:
            raise UserError(f"cannot make {num_samples} samples of {max_tokens} tokens")
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, repetition_window)
        randoms = [Xorshift(seed + i) for i in range(num_samples)]
        return self._generate(prompt.astype(np.int32), max_tokens, sampling, randoms, frozenset(stop_ids), logprobs)

    def _generate(
        self,
        prompt: np.ndarray,
        max_tokens: int,
        sampling: Sampling,
        randoms: list[Xorshift],
        stop_ids: frozenset[int],
        logprobs: list[list[float | None]] | None,
    ) -> Iterator[list[int | None]]:
        decoder, S = self._take_decoder(len(randoms)), len(randoms)
        T = decoder.config.context  # the model's, or what there is memory for
        V = min(self.model.config.vocab_size, self.tokenizer.vocab_size if self.tokenizer else 2**31)
        context = np.zeros((S, T), np.int32)  # the tokens whose keys and values are in the cache
        position = min(len(prompt), T)
        context[:, :position] = prompt[-position:]
        logits = decoder.prefill(context[0, :position])[None]
        decoder.copy(0, position, range(1, S))
        running = [True] * S
        newest = np.zeros(S, np.int32)
        window = sampling.repetition_window
        recent = [deque(prompt[-window:].tolist(), maxlen=window) for _ in range(S)]
        for step in range(max_tokens):
            ids: list[int | None] = [None] * S
            for i in range(S):
                if running[i]:
                    newest[i] = token = sample(logits[i % len(logits), :V], sampling, randoms[i], recent[i])
                    recent[i].append(token)
                    running[i] = token not in stop_ids
                    ids[i] = token if running[i] else None
            if not any(running):
                return
            if logprobs is not None:
                rows = (logits[i % len(logits), :V] for i in range(S))
                logprobs.append(
                    [
                        None if token is None else log_probability(row, token)
                        for token, row in zip(ids, rows, strict=True)
                    ]
                )
            yield ids
            if step == max_tokens - 1:
                return
            if position < T:
                context[:, position] = newest
                logits = decoder.decode(newest, np.full(S, position, np.int32), np.arange(S, dtype=np.int32))
                position += 1
            else:
                position = max(1, T // 2)
                context[:, : position - 1] = context[:, T - position + 1 :].copy()
                context[:, position - 1] = newest
                logits = np.stack([decoder.prefill(context[i, :position], i).copy() for i in range(S)])

    def _take_decoder(self, sequences: int) -> Decoder:
        if self._decoder is None or self._decoder.sequences != sequences:
            self._decoder = None  # its memory goes before the next is taken
            model = self.model
            self._decoder = new_decoder(model.config, model.parameters, self.backend, sequences, self.weights)
        return self._decoder

    def stream(
        self,
        prompt: str = "",
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        seed: int = 42,
        stop: bool = True,
        *,
        stop_strings: Sequence[str] = (),
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
    ) -> Iterator[str]:
        """Continue a text, in pieces of whole characters as they are made; from nothing if it is empty.

        Ends where the model ends the text, unless `stop` is False, and before the first of `stop_strings`. Raises
        UserError where there is no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError("the model has no tokenizer beside it: give Engine one (tokenizer=)")
        ids, stop_ids = prompt_ids(self.tokenizer, prompt), stop_ids_of(self.tokenizer, stop)
        steps = self.generate(
            ids,
            max_tokens,
            temperature,
            top_k,
            top_p,
            seed,
            stop_ids,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            repetition_window=repetition_window,
        )
        return text_pieces(steps, TextStream(StreamDecoder(self.tokenizer, int(ids[-1])), stop_strings))


def prompt_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a prompt; of an empty one, the token that stands between texts. UserError where there is none."""
    if tokenizer.bos is not None:
        return np.concatenate([np.array([tokenizer.bos], np.uint32), tokenizer.encode(text)])
    if text:
        return tokenizer.encode(text)
    if tokenizer.end_of_text is None:
        raise UserError("this tokenizer has no end-of-text token to begin with: give a prompt")
    return np.array([tokenizer.end_of_text])


def stop_ids_of(tokenizer: Tokenizer, stop: bool = True) -> tuple[int, ...]:
    """The ids at which to stop."""
    return tokenizer.stop_ids if stop else ()
