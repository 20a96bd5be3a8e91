"""Generate text with a model: a run folder, a checkpoint, a Hugging Face folder or name, a .bin of llm.c or llama2.c,
a GGUF."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmpy.cli import device
from llmpy.errors import UserError

if TYPE_CHECKING:
    from llmpy.tokenizers import StreamDecoder

EXAMPLES = """examples:
  llmpy run runs/default "The for loop"          continue a text with the model that llmpy train made
  llmpy run gpt2 "Once upon a time" -n 100       GPT-2 from the Hugging Face hub, 100 tokens
  llmpy run stories15M.bin "Once upon a time"    a Llama of llama2.c, with the tokenizer.bin beside it
  llmpy run gpt2_124M.bin -t 0                   a file of llm.c, from nothing, the likeliest token each time
  llmpy run runs/default --prompt-file in.txt    the prompt from a file; with - from stdin
  llmpy run runs/default -s 7 --num-samples 3    three texts, drawn with the seeds 7, 8 and 9

The text goes to stdout, prompt included; the speed and the seed that repeats it to stderr.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run or checkpoint folder, Hugging Face folder or name, .bin of llm.c or llama2.c, .gguf, ckpt.pt",
    )
    parser.add_argument("prompt", nargs="?", help="the text to continue; - reads stdin; none begins a new text")
    parser.add_argument("-i", "--prompt", dest="prompt_flag", metavar="TEXT", help="the same as a flag")
    parser.add_argument("--prompt-file", metavar="FILE", type=Path, help="read the prompt from a UTF-8 file")
    parser.add_argument("-n", "--steps", metavar="N", type=int, default=256, help="tokens to make (default 256)")
    parser.add_argument(
        "-t", "--temperature", metavar="X", type=float, default=1.0, help="0 takes the likeliest token (default 1.0)"
    )
    parser.add_argument("--top-k", metavar="K", type=int, default=0, help="draw among the K likeliest (default 0: all)")
    parser.add_argument(
        "-p",
        "--top-p",
        metavar="P",
        type=float,
        default=0.9,
        help="draw among the likeliest of sum P (default 0.9; 1: all)",
    )
    parser.add_argument("-s", "--seed", metavar="N", type=int, help="repeats a text (default: another one each time)")
    parser.add_argument(
        "--num-samples", metavar="N", type=int, default=1, help="texts to make, side by side (default 1)"
    )
    parser.add_argument("--no-stop", action="store_true", help="go on after the model ends the text")
    parser.add_argument(
        "-z",
        "--tokenizer",
        metavar="NAME",
        help="gpt2, bytes or a tokenizer's file (default: the one beside the model)",
    )
    device.add_arguments(parser)
    parser.add_argument("-m", "--mode", choices=["generate", "chat"], default="generate", help=argparse.SUPPRESS)
    parser.add_argument("-y", "--system-prompt", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.mode == "chat" or args.system_prompt is not None:
        raise UserError("chat needs a model that was taught to, and the GPT-2 family was not: leave out -m and -y")
    prompt = read_prompt(args)
    seed = int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed

    from llmpy import formats
    from llmpy.engine import Engine, prompt_ids, stop_ids_of
    from llmpy.tokenizers import StreamDecoder, Tokenizer

    model = formats.load(args.model)
    tokenizer = Tokenizer.from_spec(args.tokenizer) if args.tokenizer else model.tokenizer
    if tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer beside it: give --tokenizer FILE, bytes or gpt2")
    backend, precision = device.start(args)
    engine = Engine(model, backend, tokenizer, precision)
    ids = prompt_ids(tokenizer, prompt)
    stop_ids = stop_ids_of(tokenizer, not args.no_stop)
    start = time.perf_counter()
    steps = engine.generate(
        ids, args.steps, args.temperature, args.top_k, args.top_p, seed, stop_ids, num_samples=args.num_samples
    )
    clock = Clock(steps)
    with_utf8_stdout()
    print_samples(clock, prompt, [StreamDecoder(tokenizer, int(ids[-1])) for _ in range(args.num_samples)])
    print(clock.report(len(ids), start) + f"; --seed {seed}", file=sys.stderr)
    return 0


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


def with_utf8_stdout() -> None:
    """Text is UTF-8 in a pipe, whatever the locale says."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")


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


def print_samples(steps: Iterable[list[int | None]], prompt: str, decoders: list[StreamDecoder]) -> None:
    """The first text as it is made; the others, made side by side with it, after it."""
    others: list[list[str]] = [[prompt] for _ in decoders[1:]]

    def show(text: str) -> None:
        print(text, end="", flush=True)

    show(prompt)
    for ids in steps:
        first, *rest = [
            decoder.finish() if token is None else decoder.feed(token)
            for decoder, token in zip(decoders, ids, strict=True)
        ]
        show(first)
        for pieces, piece in zip(others, rest, strict=True):
            pieces.append(piece)
    show(decoders[0].finish() + "\n")
    for pieces, decoder in zip(others, decoders[1:], strict=True):
        show("---\n" + "".join(pieces) + decoder.finish() + "\n")
