"""Measure speed: a training step, its matrix products, or attention; beside PyTorch, in turn, as a ratio."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from llmpy.errors import UserError
from llmpy.precision import CHOICES, SHORT

if TYPE_CHECKING:
    from llmpy.config import ModelConfig

EXAMPLES = """examples:
  llmpy bench train --model d12 -b 4 -t 64 --against torch    a training step of GPT-2 124M beside PyTorch's
  llmpy bench train --precision bf16 --against torch          the same in bfloat16, beside PyTorch's autocast
  llmpy bench train --layers 6 --heads 6 --channels 384       of a model of your own, ours alone
  llmpy bench train --profile                                 and where its time goes, operation by operation
  llmpy bench matmul --against torch                          every product of that step, beside NumPy and PyTorch
  llmpy bench attention -t 64,1024 --against torch --json     causal attention of one layer; for machines

ratio is our time to the peer's: below 1 we are faster. The table goes to stdout, progress to stderr.

--profile lists the operations of one step. "% of the step" is the part of its time, and all of them add up to 100;
"everything else" is what Python does between them. Ceilings are measured first, for a second or two: products by the
micro-kernel with its operands in the caches, bytes to and from memory beyond them. An operation cannot take less time
than its products at the one speed or its bytes at the other, whichever is longer; "% of the ceiling" is that least
time as a part of what it took: 100 cannot be improved, and more than 100 means that its arrays were in the caches.
"share" in the table of matmul is our speed as a part of the same ceiling of products.
"""


def _numbers(text: str) -> list[int]:
    """ "64,1024" -> [64, 1024]"""
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_numbers.__name__, _positive.__name__ = "list of numbers", "number"  # what argparse calls them in an error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["train", "matmul", "attention"], help="what to measure")
    model = parser.add_argument_group("the model")
    model.add_argument("--model", metavar="NAME", default="d12", help="its shape: d6, d12, gpt3:c768 ... (default d12)")
    for name in ("layers", "heads", "channels", "vocab-size"):
        model.add_argument(f"--{name}", metavar="N", type=_positive, help="instead of the model's own")
    work = parser.add_argument_group("the work")
    work.add_argument("-b", "--batch-size", metavar="B", type=_positive, default=4, help="sequences (default 4)")
    work.add_argument(
        "-t",
        "--sequence-length",
        metavar="T",
        type=_numbers,
        help="tokens of each (default 64; for attention a list, default 64,1024)",
    )
    work.add_argument("--rows", metavar="N,N", type=_numbers, default=[256, 4096], help="of matmul (default 256,4096)")
    work.add_argument(
        "--precision",
        choices=[*CHOICES, *SHORT],
        default="float32",
        help="of products and attention; bfloat16 with float32 masters; auto: what is fastest here (default float32)",
    )
    work.add_argument(
        "-r",
        "--recompute",
        type=int,
        choices=[0, 1, 2],
        default=0,
        help="0 keep all, 1 the MLP's hidden layer again, 2 whole blocks",
    )
    work.add_argument("--clip", metavar="X", type=float, default=0.0, help="clip gradients to this norm (default: no)")
    measure = parser.add_argument_group("the measurement")
    measure.add_argument(
        "--against", choices=["torch"], help="the peer (matmul in float32 is always measured against NumPy, too)"
    )
    measure.add_argument(
        "--peer-mode",
        choices=["best", "installed", "tuned", "all"],
        default="best",
        help="PyTorch as pip installs it; tuned with tcmalloc and huge pages; all of these; best: tuned where possible",
    )
    measure.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    measure.add_argument("--threads", metavar="N", type=_positive, help="for each (default: the physical cores)")
    measure.add_argument("--rounds", metavar="N", type=_positive, default=5, help="turns of each (default 5)")
    measure.add_argument(
        "--profile", action="store_true", help="of train: where the time goes, by operation, and how fast each one is"
    )
    measure.add_argument("--json", action="store_true", help="the result as JSON")


def run(args: argparse.Namespace) -> int:
    from llmpy.bench import attention, matmul, peers, profile, report, train
    from llmpy.kernels import cpu
    from llmpy.precision import resolve

    if args.profile and args.what != "train":
        raise UserError(f"--profile is of a training step: llmpy bench train --profile, not {args.what}")
    precision = resolve(args.precision)
    threads = cpu.set_threads(args.threads)
    lengths = args.sequence_length or ([64, 1024] if args.what == "attention" else [64])
    config = shape_of(args, max(lengths))
    rivals = peers.torch_peers(args.peer_mode, not args.no_compile) if args.against else []
    match args.what:
        case "train":
            if len(lengths) > 1:
                raise UserError("a training step has one --sequence-length: give one number")
            step = train.Step(config, args.batch_size, lengths[0], threads, args.recompute, args.clip, precision)
            result = train.bench(step, args.rounds, rivals)
            if args.profile:
                result["profile"] = profile.bench(step, args.rounds)
        case "matmul":
            result = matmul.bench(config, args.rows, threads, args.rounds, bool(args.against), precision)
        case _:
            rival = rivals[0] if rivals else None  # attention is one kernel: there is nothing to compile
            result = attention.bench(config, args.batch_size, lengths, threads, args.rounds, rival, precision)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        report.show(result)
    return 0


def shape_of(args: argparse.Namespace, length: int) -> ModelConfig:
    """The model's shape, with what the flags change; its context is as long as the sequences need."""
    from dataclasses import replace

    from llmpy.config import LlamaConfig, from_descriptor

    config = from_descriptor(args.model)
    names = ("layers", "heads", "channels", "vocab_size")
    sizes: dict[str, Any] = {name: size for name in names if (size := getattr(args, name)) is not None}
    if isinstance(config, LlamaConfig) and sizes.keys() & {"heads", "channels"}:
        sizes |= dict.fromkeys(("kv_heads", "hidden", "head_size"), 0)  # which follow from those two
    return replace(config, **sizes, context=max(config.context, length))
