"""The flags of the commands that generate text, and what they make ready."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpy.cli import device
from llmpy.errors import UserError

if TYPE_CHECKING:
    from llmpy.formats.load import LoadedModel
    from llmpy.inference.engine import Engine


def add_arguments(parser: argparse.ArgumentParser, steps: int | None, steps_help: str) -> None:
    """`steps` is how many tokens are made where none are asked for."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run or checkpoint folder, Hugging Face folder or name, .bin of llm.c or llama2.c, .gguf, ckpt.pt",
    )
    parser.add_argument("-n", "--steps", metavar="N", type=int, default=steps, help=steps_help)
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
    parser.add_argument(
        "--min-p",
        metavar="P",
        type=float,
        default=0.0,
        help="leave out what is less likely than P times the likeliest (default 0: nothing)",
    )
    parser.add_argument(
        "--repetition-penalty",
        metavar="X",
        type=float,
        default=1.0,
        help="make tokens that were there already less likely, as CTRL and llama.cpp do (default 1: no; try 1.1)",
    )
    parser.add_argument(
        "--repetition-window", metavar="N", type=int, default=64, help="how many tokens it looks back (default 64)"
    )
    parser.add_argument(
        "--context",
        metavar="N",
        type=int,
        help="tokens to look back at, and to take memory for (default: what the model can, up to 4096)",
    )
    parser.add_argument(
        "--overflow",
        choices=["roll", "reread", "stop"],
        help="past the context: roll forgets the older half but for the first 4 tokens, and goes on; reread begins anew"
        " with the last half; stop ends the text (default: roll, and reread for GPT-2, which cannot roll)",
    )
    parser.add_argument("-s", "--seed", metavar="N", type=int, help="repeats a text (default: another one each time)")
    parser.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before this text; may be given several times"
    )
    parser.add_argument(
        "-z",
        "--tokenizer",
        metavar="NAME",
        help="gpt2, bytes or a tokenizer's file (default: the one beside the model)",
    )
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="what the weights are run as: stored, as they are in the file; float32; bfloat16; q8, 8 bits; auto is"
        " bfloat16 where that is faster than float32 (default: that of a run's training, else stored)",
    )
    device.add_arguments(parser)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Engine.generate` from the flags, except the seed."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repetition_window")
    return {name: getattr(args, name) for name in names}


def seed(args: argparse.Namespace) -> int:
    return int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed


def start(args: argparse.Namespace) -> tuple[LoadedModel, Engine]:
    """The model, and the engine with its tokenizer. Raises UserError for what cannot be had."""
    from llmpy.formats.load import load_model
    from llmpy.inference.engine import Engine
    from llmpy.models.precision import of_generation
    from llmpy.tokenization.base import Tokenizer

    model = load_model(args.model)
    tokenizer = Tokenizer.from_spec(args.tokenizer) if args.tokenizer else model.tokenizer
    if tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer beside it: give --tokenizer FILE, bytes or gpt2")
    backend, precision = device.name(args), args.precision or _trained_in(Path(args.model).expanduser())
    precision, computing = of_generation(precision, model.stored.kinds, backend)
    device.start(args, computing)
    return model, Engine(model, backend, tokenizer, precision, args.context, args.overflow)


def _trained_in(run: Path) -> str:
    """The precision of a run folder's training, whose kernels are compiled already; of any other model, as stored."""
    from llmpy.training.config_file import read_toml

    if (run / "config.toml").is_file():
        try:
            return str(read_toml(run / "config.toml").get("precision", "stored"))
        except UserError:  # whatever is wrong with its settings, the model may be whole
            return "stored"
    return "stored"


def with_utf8_stdout() -> None:
    """Text is UTF-8 in a pipe, whatever the locale says."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
