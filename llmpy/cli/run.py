"""Generate text with a model: a run folder, a checkpoint, a Hugging Face folder or name, a .bin of llm.c or llama2.c,
a GGUF."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmpy.cli import chat, generation
from llmpy.errors import UserError

if TYPE_CHECKING:
    from llmpy.inference.text_stream import TextStream
    from llmpy.tokenization.base import Tokenizer

EXAMPLES = """examples:
  llmpy run runs/default "The for loop"          continue a text with the model that llmpy train made
  llmpy run gpt2 "Once upon a time" -n 100       GPT-2 from the Hugging Face hub, 100 tokens
  llmpy run stories15M.bin "Once upon a time"    a Llama of llama2.c, with the tokenizer.bin beside it
  llmpy run gpt2_124M.bin -t 0                   a file of llm.c, from nothing, the likeliest token each time
  llmpy run runs/default --prompt-file in.txt    the prompt from a file; with - from stdin
  llmpy run runs/default -s 7 --num-samples 3    three texts, drawn with the seeds 7, 8 and 9
  llmpy run runs/default "The" --stop "." -n 50  up to the end of the sentence
  llmpy run gpt2 "Once" --min-p 0.05 --top-p 1 --repetition-penalty 1.1
  llmpy run model.gguf "It" -n 9999 --context 512 --overflow roll       on and on, in the memory of 512 tokens
  llmpy run gpt2 "The capital" --logprobs -n 3   how likely each token was, in JSON

The text goes to stdout, prompt included; the speed and the seed that repeats it to stderr.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    generation.add_arguments(parser, 256, "tokens to make (default 256)")
    parser.add_argument("prompt", nargs="?", help="the text to continue; - reads stdin; none begins a new text")
    parser.add_argument("-i", "--prompt", dest="prompt_flag", metavar="TEXT", help="the same as a flag")
    parser.add_argument("--prompt-file", metavar="FILE", type=Path, help="read the prompt from a UTF-8 file")
    parser.add_argument(
        "--num-samples", metavar="N", type=int, default=1, help="texts to make, side by side (default 1)"
    )
    parser.add_argument("--no-stop", action="store_true", help="go on after the model ends the text")
    parser.add_argument(
        "--logprobs",
        action="store_true",
        help="print, instead of the text, a line of JSON for each token, with its log-probability",
    )
    parser.add_argument(
        "-m", "--mode", choices=["generate", "chat"], default="generate", help="chat is llmpy chat (default generate)"
    )
    parser.add_argument("-y", "--system-prompt", dest="system", metavar="TEXT", help="with -m chat: told before all")


def run(args: argparse.Namespace) -> int:
    if args.mode == "chat":
        return converse(args)
    if args.system is not None:
        raise UserError("a system prompt (-y) belongs to a conversation: add -m chat, or use llmpy chat")
    prompt = read_prompt(args)
    seed = generation.seed(args)

    from llmpy.inference.engine import prompt_ids, stop_ids_of
    from llmpy.inference.text_stream import TextStream
    from llmpy.tokenization.base import StreamDecoder

    _, engine = generation.start(args)
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    ids = prompt_ids(tokenizer, prompt)
    streams = [TextStream(StreamDecoder(tokenizer, int(ids[-1])), args.stop) for _ in range(args.num_samples)]
    logprobs: list[list[float | None]] | None = [] if args.logprobs else None
    start = time.perf_counter()
    steps = engine.generate(
        ids,
        args.steps,
        seed=seed,
        stop_ids=stop_ids_of(tokenizer, not args.no_stop),
        num_samples=args.num_samples,
        logprobs=logprobs,
        **generation.sampling_options(args),
    )
    clock = Clock(steps)
    generation.with_utf8_stdout()
    if logprobs is None:
        print_samples(clock, prompt, streams)
    else:
        print_logprobs(clock, logprobs, tokenizer, streams)
    print(clock.report(len(ids), start) + f"; --seed {seed}", file=sys.stderr)
    return 0


def converse(args: argparse.Namespace) -> int:
    """llama2.c's chat mode: the prompt is the first message, and stdin has the others."""
    flags = {"--prompt-file": args.prompt_file, "--logprobs": args.logprobs, "--no-stop": args.no_stop}
    flags |= {"--num-samples": args.num_samples != 1, "both PROMPT and -i": args.prompt and args.prompt_flag}
    if wrong := next((flag for flag, given in flags.items() if given), None):
        raise UserError(f"{wrong} does not go together with -m chat")
    args.prompt, args.template = args.prompt or args.prompt_flag, None
    return chat.run(args)


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt from wherever it was given; one newline at the end of a file or of stdin is not part of it."""
    given = [prompt for prompt in (args.prompt, args.prompt_flag, args.prompt_file) if prompt is not None]
    if len(given) > 1:
        raise UserError("more than one prompt is given: use one of PROMPT, --prompt and --prompt-file")
    if args.prompt_file is not None:
        try:
            data = args.prompt_file.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {args.prompt_file}: {error.strerror or error}") from error
        return as_text(data, str(args.prompt_file)).removesuffix("\n").removesuffix("\r")
    if given == ["-"] or (not given and stdin_is_given()):
        return as_text(sys.stdin.buffer.read(), "stdin").removesuffix("\n").removesuffix("\r")
    # The bytes as they were typed, whatever the locale made of them.
    return as_text(os.fsencode(given[0]), "the prompt") if given else ""


def stdin_is_given() -> bool:
    """Is a file or a pipe connected to stdin? A terminal or /dev/null is no prompt."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def as_text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text (byte {error.start}): convert it, or choose another file"
        ) from error


class Clock:
    """Passes the engine's steps on and takes the time: the prompt until the first of them, then the others."""

    def __init__(self, steps: Iterator[list[int | None]]) -> None:
        self.steps, self.tokens, self.first = steps, 0, 0.0
        self.first_tokens = 0

    def __iter__(self) -> Iterator[list[int | None]]:
        for ids in self.steps:
            self.tokens += sum(token is not None for token in ids)
            if not self.first:
                self.first, self.first_tokens = time.perf_counter(), self.tokens
            yield ids

    def report(self, prompt_tokens: int, start: float) -> str:
        """ "prompt 5 tokens in 0.10 s, 255 tokens at 81.3 tokens/s"."""
        end = time.perf_counter()
        text = f"prompt {prompt_tokens} tokens in {(self.first or end) - start:.2f} s, {self.tokens} tokens"
        if self.tokens > self.first_tokens:
            text += f" at {(self.tokens - self.first_tokens) / (end - self.first):.1f} tokens/s"
        return text


def print_samples(steps: Iterable[list[int | None]], prompt: str, streams: list[TextStream]) -> None:
    """The first text as it is made; the others, made side by side with it, after it."""
    others: list[list[str]] = [[prompt] for _ in streams[1:]]

    def show(text: str) -> None:
        print(text, end="", flush=True)

    show(prompt)
    for ids in steps:
        first, *rest = [
            stream.finish() if token is None else stream.feed(token) for stream, token in zip(streams, ids, strict=True)
        ]
        show(first)
        for pieces, piece in zip(others, rest, strict=True):
            pieces.append(piece)
        if all(stream.stopped for stream in streams):
            break
    show(streams[0].finish() + "\n")
    for pieces, stream in zip(others, streams[1:], strict=True):
        show("---\n" + "".join(pieces) + stream.finish() + "\n")


def print_logprobs(
    steps: Iterable[list[int | None]],
    logprobs: list[list[float | None]],
    tokenizer: Tokenizer,
    streams: list[TextStream],
) -> None:
    """A line for every token as it is made: its sample, id, text and log-probability, the natural logarithm."""
    for ids in steps:
        for sample, (token, stream) in enumerate(zip(ids, streams, strict=True)):
            if token is None or stream.stopped:
                continue
            stream.feed(token)
            text = tokenizer.token_bytes(token).decode(errors="replace")
            line = {"sample": sample, "token": token, "text": text, "logprob": logprobs[-1][sample]}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        if all(stream.stopped for stream in streams):
            break
