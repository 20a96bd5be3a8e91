"""Train the same GPT on the same batches here and in PyTorch, and draw both curves of the loss.

    python benchmarks/loss_curve.py                            Tiny Shakespeare, bytes, 6 layers x 384: about 10 minutes
    python benchmarks/loss_curve.py my.txt --tokenizer bpe:512 --steps 200

Writes loss_curve.json and, where matplotlib is installed, loss_curve.png into --out. Prints how far apart the smoothed
curves get, and how far two runs of PyTorch that begin one rounding apart: what a difference has to be compared with.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from llmpy import kernels
from llmpy.bench import loss_curve, machine, peers
from llmpy.config import GPT2Config
from llmpy.data.corpora import open_corpus
from llmpy.files import write_text_atomic
from llmpy.progress import bar
from llmpy.tokenizers import Tokenizer

OURS, THEIRS, NUDGED = "llm.py", "PyTorch", "PyTorch, begun one rounding apart"
WINDOW = 20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="shakespeare", help="a text file, or the name of a corpus")
    parser.add_argument("--tokenizer", default="bytes", help="bytes, gpt2 or bpe:N (default bytes)")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    return parser.parse_args()


def main() -> None:
    args = parse()
    peers.require_torch()
    kernels.start("cpu")
    text = "".join(piece.text for piece in open_corpus(args.text).pieces())
    tokenizer = Tokenizer.from_spec(args.tokenizer, [text])
    config = GPT2Config(tokenizer.vocab_size, args.sequence_length, args.layers, args.heads, args.channels)
    tokens = np.asarray(tokenizer.encode(text))
    curve = loss_curve.Curve(config, tokens, args.batch_size, args.sequence_length, args.steps)
    with bar("training three times", 3 * args.steps, "steps") as shown:
        curves = {
            OURS: loss_curve.ours(curve, shown),
            THEIRS: loss_curve.pytorch(curve, shown),
            NUDGED: loss_curve.pytorch(curve, shown, nudge=1e-7),
        }
    window = min(WINDOW, args.steps)
    difference = loss_curve.largest_difference(curves[OURS], curves[THEIRS], window)
    noise = loss_curve.largest_difference(curves[NUDGED], curves[THEIRS], window)
    print(f"last loss, mean of {window}: " + ", ".join(f"{n} {np.mean(c[-window:]):.4f}" for n, c in curves.items()))
    print(
        f"largest difference of the smoothed curves: llm.py to PyTorch {difference:.5f}, PyTorch to itself {noise:.5f}"
    )
    result = {
        "text": Path(args.text).name,
        "tokenizer": args.tokenizer,
        "model": vars(config),
        "window": window,
        "difference": difference,
        "noise": noise,
        "machine": machine.describe(kernels.load("cpu").set_threads()),
        "losses": curves,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_text_atomic(args.out / "loss_curve.json", json.dumps(result) + "\n")
    draw(curves, window, args.out / "loss_curve.png")


def draw(curves: dict[str, list[float]], window: int, path: Path) -> None:
    """The curves above, and below how far each is from PyTorch's."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1))
    smooth = {name: loss_curve.smoothed(losses, window) for name, losses in curves.items()}
    steps = np.arange(window, window + len(smooth[OURS]))
    for (name, line), style in zip(smooth.items(), ("-", "--", ":"), strict=True):
        above.plot(steps, line, style, label=name)
    for name, style in ((OURS, "-"), (NUDGED, ":")):
        below.plot(steps, smooth[name] - smooth[THEIRS], style, color="C0" if name == OURS else "C2", label=name)
    above.set(ylabel=f"loss, mean of {window} steps")
    below.set(xlabel="step", ylabel="minus PyTorch's")
    above.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
