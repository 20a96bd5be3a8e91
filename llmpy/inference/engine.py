"""Generation: token ids in, token ids out. The prompt is read in one pass, each token after it costs one step.

The engine knows nothing about text but for `stream`, which puts a tokenizer on either side.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import numpy as np

from llmpy import kernels
from llmpy.errors import UserError
from llmpy.inference.kv_cache import History
from llmpy.inference.sampling import Sampling
from llmpy.inference.scheduler import Batch, checked_prompt, overflow_of
from llmpy.inference.text_stream import TextStream, text_pieces
from llmpy.models.config import ModelConfig
from llmpy.models.decoder import decoder_context, on_backend
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.parameters import Parameters
from llmpy.models.precision import of_generation
from llmpy.models.registry import family_of, new_decoder
from llmpy.tokenization.base import StreamDecoder, Tokenizer


class Model(Protocol):
    """The part of a model that the engine needs; `llmpy.load` returns one, and a model in training is one.

    A loaded model runs on its stored weights (`.stored`), a model in training on its `.parameters`.
    """

    @property
    def config(self) -> ModelConfig: ...
    @property
    def parameters(self) -> Parameters: ...


class Engine:
    """Generates with the current parameters of a model. The cache is taken at the first call and kept.

    `precision` says what the matrices are: of the types they are `stored` in; made `float32`, `bfloat16`, or `q8`:
    8 bits (Q8_0), which meet activations in 8 bits. A model in training has its own. `context` is how many tokens can
    be looked back at (None: what `decoder_context` says), and `overflow` what happens to a text beyond them: see Batch.
    """

    def __init__(
        self,
        model: Model,
        backend: str = "cpu",
        tokenizer: Tokenizer | None = None,
        precision: str = "stored",
        context: int | None = None,
        overflow: str | None = None,
    ) -> None:
        self.model, self.backend = model, backend
        self.context = decoder_context(model.config, context)
        self.overflow = overflow_of(family_of(model.config).decoder.can_shift, overflow)
        self.weights, self.precision = _weights_of(model, precision, backend)
        self.tokenizer: Tokenizer | None = tokenizer or getattr(model, "tokenizer", None)
        self._placed: StoredWeights | None = None  # where the backend reads them
        self._batch: Batch | None = None

    def batch(self, slots: int = 8) -> Batch:
        """Returns a Batch that decodes up to `slots` texts together and queues the others, as a server needs.

        The batch has its own KV cache. Raises UserError if memory does not suffice.
        """
        if slots < 1:
            raise UserError(f"a batch has 1 slot or more, not {slots}")
        self._placed = self._placed or on_backend(self.weights, self.backend)
        decoder = new_decoder(self._placed, self.backend, slots, self.context, self.precision)
        return Batch(decoder, self.tokenizer.vocab_size if self.tokenizer else None, self.overflow)

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
        history: History | None = None,
    ) -> Iterator[list[int | None]]:
        """Continue the prompt: for every step one id a sample, None for a sample that has stopped; ends when all have.

        Sample i draws with seed + i, so that it is the one that the seed alone would give. A list `logprobs` gets, step
        by step, the natural logarithms of the probabilities that the model itself gave the ids, before temperature,
        penalty and all that leaves tokens out. `llmpy.inference.sampling.Sampling` says what the other settings do.

        A `history` becomes the prompt with its continuation, of one sample; the next call with it does not read again
        what both begin with, and the parameters must be the same then. Raises UserError at once for what cannot be
        done.
        """
        prompt = checked_prompt(prompt, self.model.config.vocab_size, self.context, self.overflow)
        if num_samples < 1 or max_tokens < 0:
            raise UserError(f"cannot make {num_samples} samples of {max_tokens} tokens")
        if history is not None and num_samples > 1:
            raise UserError(f"a history goes on in one way, not in {num_samples}")
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, repetition_window)
        seeds = range(seed, seed + num_samples)
        return self._generate(prompt, max_tokens, sampling, seeds, frozenset(stop_ids), logprobs, history)

    def _generate(
        self,
        prompt: list[int],
        max_tokens: int,
        sampling: Sampling,
        seeds: range,
        stop_ids: frozenset[int],
        logprobs: list[list[float | None]] | None,
        history: History | None,
    ) -> Iterator[list[int | None]]:
        batch, asked = self._take_batch(len(seeds)), logprobs is not None
        requests = [
            batch.submit(prompt, sampling, seed, max_tokens, stop_ids, logprobs=asked, history=history)
            for seed in seeds
        ]
        try:
            for step in range(max_tokens):
                while any(request.ended is None and len(request.tokens) == step for request in requests):
                    batch.step()
                ids = [request.tokens[step] if step < len(request.tokens) else None for request in requests]
                if all(token is None for token in ids):
                    return
                if logprobs is not None:
                    logprobs.append(
                        [r.logprobs[step] if r.logprobs and step < len(r.logprobs) else None for r in requests]
                    )
                yield ids
        finally:
            for request in requests:
                batch.cancel(request)

    def _take_batch(self, samples: int) -> Batch:
        """The engine's own, with nothing in it that the model might not say any more: it may be in training."""
        if self._batch is not None:
            self._batch.forget()
            if self._batch.idle and self._batch.decoder.sequences < samples:
                self._batch = None  # its memory goes before the next is taken
        if self._batch is None:
            self._batch = self.batch(samples)
        return self._batch

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


def _weights_of(model: Model, precision: str, backend: str) -> tuple[StoredWeights, str]:
    """Returns the weights to generate with, and the precision of KV cache and activations."""
    stored = getattr(model, "stored", None)
    if stored is None:
        matrix_of = kernels.load(backend).matrix_of
        return StoredWeights.of(model.parameters, model.config, matrix_of), getattr(model, "precision", "float32")
    name, computing = of_generation(precision, stored.kinds, backend)
    kind = {"float32": "F32", "bfloat16": "BF16", "q8": "Q8_0"}.get(name)
    return stored.converted(kind) if kind else stored, computing


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
