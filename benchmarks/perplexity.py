"""Measures the perplexity of a text under a model, in each precision that the model can run in.

    python benchmarks/perplexity.py stories260K.bin stories.txt                      float32 and bfloat16
    python benchmarks/perplexity.py model.gguf book.txt --precision float32 q8 --last 0.1
    python benchmarks/perplexity.py stories15M.bin stories.txt --cut stories         each story alone

The text is a file with a line <|endoftext|> between its stories, or the name of a corpus. Each story is read without
white space at its ends, behind the token that begins a text. As llama2.c validates, they stand one after the other and
are cut into windows of the context wherever that falls; --cut stories reads each one alone. Prints nats a token (the
mean cross-entropy), the perplexity, and how far the nats are from the first precision's.
"""

import argparse
import json
import sys

import numpy as np

from llmpy import kernels
from llmpy.bench import machine, perplexity, report
from llmpy.data.corpora import open_corpus
from llmpy.errors import UserError
from llmpy.formats.load import load_model
from llmpy.inference.engine import Engine
from llmpy.models.precision import SHORT
from llmpy.tokenization.base import Tokenizer
from llmpy.utils.progress_bar import bar

MOST_CONTEXT = 1024  # of the windows, where nothing else is asked for


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what llmpy run takes")
    parser.add_argument("text", help="a text file, or the name of a corpus")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], help="default float32 bfloat16")
    parser.add_argument("--cut", choices=perplexity.CUTS, default="stream", help="default stream")
    parser.add_argument("--last", type=float, default=1.0, help="read this part of the stories, the last (default 1)")
    parser.add_argument("--context", type=int, help=f"of a window (default: the model's, up to {MOST_CONTEXT})")
    parser.add_argument("--side-by-side", type=int, default=16, help="windows read at once (default 16)")
    parser.add_argument("--tokenizer", help="a tokenizer's file (default: the one beside the model)")
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    model = load_model(args.model)
    tokenizer = Tokenizer.from_spec(args.tokenizer) if args.tokenizer else model.tokenizer
    if tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer beside it: give --tokenizer FILE")
    separator = tokenizer.bos if tokenizer.bos is not None else tokenizer.end_of_text
    if separator is None:
        raise UserError("this tokenizer has no token that begins a text")
    context = args.context or min(model.config.context, MOST_CONTEXT)
    if not 1 <= context <= model.config.context or not 0 < args.last <= 1 or args.side_by_side < 1:
        raise UserError(f"the context has 1 to {model.config.context} tokens, --last is a part above 0, up to 1")
    windows = perplexity.CUTS[args.cut](stories_of(args.text, tokenizer, args.last), separator, context)
    if not windows.count:
        raise UserError(f"{args.text} has not one window of {context} tokens: give a lower --context, or more text")
    names, nats = [SHORT.get(name, name) for name in args.precision], {}
    with bar("reading", len(names) * windows.count, "tokens") as shown:
        for name in names:
            engine = Engine(model, precision=name)
            kernels.start("cpu", args.threads, engine.precision)
            nats[name] = perplexity.nats_a_token(engine, windows, args.side_by_side, shown)
    result = {
        "model": args.model,
        "text": args.text,
        "cut": args.cut,
        "context": context,
        "tokens": windows.count,
        "nats": nats,
        "machine": machine.describe(kernels.load("cpu").set_threads(args.threads)),
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{windows.count:,} tokens, {args.cut}, windows of {context}")
    rows = [[name, f"{n:.5f}", f"{p:.4f}", f"{change:+.3%}"] for name, n, p, change in perplexity.compared(nats)]
    report.table(["precision", "nats a token", "perplexity", "nats, to the first"], rows)


def stories_of(text: str, tokenizer: Tokenizer, last: float) -> list[np.ndarray]:
    """The tokens of every story, of the last part of them."""
    stories: list[str] = []
    for piece in open_corpus(text).pieces():
        if piece.starts_document or not stories:
            stories.append("")
        stories[-1] += piece.text
    stories = stories[round(len(stories) * (1 - last)) :]
    return [tokenizer.encode(story.strip()) for story in stories if story.strip()]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"perplexity.py: error: {error}")
