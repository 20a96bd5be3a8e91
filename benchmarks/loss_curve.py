"""Train the same model on the same batches here and in PyTorch, and draw the curves of the loss.

    python benchmarks/loss_curve.py                            Tiny Shakespeare, bytes, 6 layers x 384: about 10 minutes
    python benchmarks/loss_curve.py --precision bf16           in bfloat16, beside float32 and PyTorch's autocast
    python benchmarks/loss_curve.py my.txt --tokenizer bpe:512 --steps 200
    python benchmarks/loss_curve.py stories.txt --model llama:260K --tokenizer sentencepiece:512 --steps 200

Writes loss_curve.json and, where matplotlib is installed, loss_curve.png into --out; with --precision bf16 both are
called loss_curve_bf16, and of a Llama loss_curve_llama. Prints the last losses, and how far apart the smoothed curves
get. What a difference has to be compared with is in float32 that of two runs of PyTorch which begin one rounding apart,
and in bfloat16 that which the precision makes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from llmpy import kernels
from llmpy.bench import loss_curve, machine, peers
from llmpy.data.corpora import open_corpus
from llmpy.errors import UserError
from llmpy.models.precision import resolve
from llmpy.models.presets import SHAPE, family_of_descriptor, shape_of
from llmpy.tokenization.base import Tokenizer
from llmpy.utils.atomic_files import write_text_atomic
from llmpy.utils.progress_bar import Bar, bar

WINDOW = 20
STEPS = {"float32": 500, "bfloat16": 300}
FILES = {"float32": "loss_curve", "bfloat16": "loss_curve_bf16"}
# Blue, vermilion and green of Okabe and Ito (2008), which colour-blind people tell apart, and line styles for the rest.
LOOKS = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":"))

OWN_SHAPE = dict.fromkeys(SHAPE) | {"layers": 6, "heads": 6, "channels": 384}

Runs = dict[str, Callable[[loss_curve.Curve, Bar], list[float]]]


def runs(precision: str) -> Runs:
    """Returns the runs by name; the lower picture shows the difference of each run from the last one."""
    ours, pytorch = loss_curve.ours, loss_curve.pytorch
    if precision == "float32":
        return {
            "llm.py": ours,
            "PyTorch, begun one rounding apart": lambda curve, shown: pytorch(curve, shown, nudge=1e-7),
            "PyTorch": pytorch,
        }
    return {
        f"llm.py, {precision}": lambda curve, shown: ours(curve, shown, precision),
        f"PyTorch, {precision} (autocast)": lambda curve, shown: pytorch(curve, shown, precision=precision),
        "llm.py, float32": ours,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="shakespeare", help="a text file, or the name of a corpus")
    parser.add_argument("--tokenizer", default="bytes", help="bytes, gpt2 or bpe:N (default bytes)")
    parser.add_argument("--precision", default="float32", choices=["float32", "fp32", "bfloat16", "bf16"])
    parser.add_argument("--steps", type=int, help="default 500, in bfloat16 300")
    parser.add_argument("--model", help="a shape, d12 or llama:260K; llama alone and none take the sizes below")
    for name, size in OWN_SHAPE.items():
        more = f" (default without --model {size})" if size else ""
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"of the model{more}")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    return parser.parse_args()


def main() -> None:
    args = parse()
    peers.require_torch()
    precision = resolve(args.precision)
    steps = args.steps or STEPS[precision]
    for each in {"float32", precision}:  # in bfloat16 both are trained
        kernels.start("cpu", precision=each)
    text = "".join(piece.text for piece in open_corpus(args.text).pieces())
    tokenizer = Tokenizer.from_spec(args.tokenizer, [text])
    sizes = {name: getattr(args, name) or (None if args.model else size) for name, size in OWN_SHAPE.items()}
    given = {name: size for name, size in sizes.items() if size}
    config = shape_of(args.model, tokenizer.vocab_size, args.sequence_length, **given)
    tokens = np.asarray(tokenizer.encode(text))
    curve = loss_curve.Curve(config, tokens, args.batch_size, args.sequence_length, steps)
    todo, curves = runs(precision), {}
    with bar("training", len(todo) * steps, "steps") as shown:
        for name, train in todo.items():
            shown.description = f"training {name}"
            curves[name] = train(curve, shown)
    window, reference = min(WINDOW, steps), list(curves)[-1]
    result = {
        "text": Path(args.text).name,
        "tokenizer": args.tokenizer,
        "model": vars(config),
        "precision": precision,
        "window": window,
        "differences": compare(curves, window),
        "machine": machine.describe(kernels.load("cpu").set_threads()),
        "losses": curves,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = FILES[precision] + ("_llama" if family_of_descriptor(args.model).name == "llama" else "")
    write_text_atomic(args.out / f"{file}.json", json.dumps(result) + "\n")
    draw(curves, reference, window, args.out / f"{file}.png")


def compare(curves: dict[str, list[float]], window: int) -> list[dict[str, Any]]:
    """Print how each curve ends, and how far each is from each other one, there and at most; return the latter."""
    print(f"last loss, mean of {window} steps:")
    last = {name: float(np.mean(losses[-window:])) for name, losses in curves.items()}
    for name, loss in last.items():
        print(f"  {name:34} {loss:.4f}")
    print("differences of the smoothed curves, at the end and at most:")
    differences = []
    for a, b in combinations(curves, 2):
        largest = loss_curve.largest_difference(curves[a], curves[b], window)
        differences.append({"of": [a, b], "last": last[a] - last[b], "largest": largest})
        print(f"  {last[a] - last[b]:+.5f}  {largest:.5f}  {a} minus {b}")
    return differences


def draw(curves: dict[str, list[float]], reference: str, window: int, path: Path) -> None:
    """The curves above, and below how far each is from the reference."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1))
    smooth = {name: loss_curve.smoothed(losses, window) for name, losses in curves.items()}
    steps = np.arange(window, window + len(smooth[reference]))
    for (name, line), (color, style) in zip(smooth.items(), LOOKS, strict=True):
        above.plot(steps, line, style, color=color, label=name)
        if name != reference:
            below.plot(steps, line - smooth[reference], style, color=color)
    above.set(ylabel=f"loss, mean of {window} steps")
    below.set(xlabel="step", ylabel=f"minus\n{reference}")
    above.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"loss_curve.py: error: {error}")
