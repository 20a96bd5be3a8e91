"""Measure speed: a training step, its products, attention, generating; beside a peer, in turn, as a ratio."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpy.errors import UserError
from llmpy.models.precision import CHOICES, SHORT

if TYPE_CHECKING:
    from llmpy.models.config import ModelConfig

SIZES = ("layers", "heads", "channels", "vocab_size")  # that may be given beside the model
EIGHT_BITS = "q8"
OF_DECODE = ("llama2c", "llamacpp")

EXAMPLES = """examples:
  llmpy bench train --model d12 -b 4 -t 64 --against torch    a training step of GPT-2 124M beside PyTorch's
  llmpy bench train --precision bf16 --against torch          the same in bfloat16, beside PyTorch's autocast
  llmpy bench train --layers 6 --heads 6 --channels 384       of a model of your own, ours alone
  llmpy bench train --profile                                 and where its time goes, operation by operation
  llmpy bench matmul --against torch                          every product of that step, beside NumPy and PyTorch
  llmpy bench attention -t 64,1024 --against torch --json     causal attention of one layer; for machines
  llmpy bench decode --model stories15M.bin                   generating: tokens/s, and the memory bandwidth they use
  llmpy bench decode --model llama:110M --against llama2c --binary llama2.c/run
  llmpy bench decode --model model.gguf --against llamacpp --python other-venv/bin/python
  llmpy bench decode --model model.gguf --batch-size 8        8 texts at once beside one alone
  llmpy bench decode --model llama:110M --prompt 512 --precision bf16 --against torch    reading a prompt

ratio is our time to the peer's: below 1 we are faster. Of decode it is said the other way round, as "times the speed".
The table goes to stdout, progress to stderr.

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
    parser.add_argument("what", choices=["train", "matmul", "attention", "decode"], help="what to measure")
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--model",
        metavar="NAME",
        default="d12",
        help="its shape: d6, d12, gpt3:c768, llama:15M ... (default d12); of decode also the file or folder of a model",
    )
    for name in SIZES:
        model.add_argument(
            f"--{name.replace('_', '-')}", metavar="N", type=_positive, help="instead of the model's own"
        )
    work = parser.add_argument_group("the work")
    work.add_argument(
        "-b", "--batch-size", metavar="B", type=_positive, help="sequences (default 4); of decode texts (default 1)"
    )
    work.add_argument(
        "-t",
        "--sequence-length",
        metavar="T",
        type=_numbers,
        help="tokens of each (default 64; for attention a list, default 64,1024)",
    )
    work.add_argument("--rows", metavar="N,N", type=_numbers, default=[256, 4096], help="of matmul (default 256,4096)")
    work.add_argument("-n", "--tokens", metavar="N", type=_positive, default=256, help="of decode (default 256)")
    work.add_argument("--prompt", metavar="N", type=_positive, help="of decode: read so many tokens, generate none")
    work.add_argument(
        "--precision",
        choices=[*CHOICES, *SHORT, EIGHT_BITS],
        help="of products and attention; bfloat16 with float32 masters; auto: what is fastest here (default float32); "
        f"of decode that of the weights, {EIGHT_BITS} too (default: the engine's own)",
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
        "--against",
        choices=["torch", "llama2c", "llamacpp"],
        help="the peer (matmul in float32 is always measured against NumPy, too); the last two are of decode",
    )
    measure.add_argument("--binary", metavar="PATH", type=Path, help="llama2.c's `run`, or its `runq` for 8 bits")
    measure.add_argument("--python", metavar="PATH", help="the Python that has llama_cpp (default: this one)")
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
    from llmpy.bench import report

    result = _decode(args) if args.what == "decode" else _of_training(args)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        report.show(result)
    return 0


def _of_training(args: argparse.Namespace) -> dict[str, Any]:
    from llmpy.bench import attention, matmul, peers, profile, train
    from llmpy.kernels import cpu
    from llmpy.models.precision import resolve

    if args.profile and args.what != "train":
        raise UserError(f"--profile is of a training step: llmpy bench train --profile, not {args.what}")
    if args.against in OF_DECODE:
        raise UserError(f"--against {args.against} is of generating: llmpy bench decode, not {args.what}")
    if args.precision == EIGHT_BITS:
        raise UserError(f"--precision {EIGHT_BITS} is of generating: llmpy bench decode, not {args.what}")
    precision = resolve(args.precision or "float32")
    threads = cpu.set_threads(args.threads)
    lengths = args.sequence_length or ([64, 1024] if args.what == "attention" else [64])
    config, batch_size = shape_of(args, max(lengths)), args.batch_size or 4
    rivals = peers.torch_peers(args.peer_mode, not args.no_compile) if args.against else []
    if args.what == "matmul":
        return matmul.bench(config, args.rows, threads, args.rounds, bool(args.against), precision)
    if args.what == "attention":
        rival = rivals[0] if rivals else None  # attention is one kernel: there is nothing to compile
        return attention.bench(config, batch_size, lengths, threads, args.rounds, rival, precision)
    if len(lengths) > 1:
        raise UserError("a training step has one --sequence-length: give one number")
    step = train.Step(config, batch_size, lengths[0], threads, args.recompute, args.clip, precision)
    result = train.bench(step, args.rounds, rivals)
    if args.profile:
        result["profile"] = profile.bench(step, args.rounds)
    return result


def _decode(args: argparse.Namespace) -> dict[str, Any]:
    from llmpy.bench import decode, decode_peers, peers
    from llmpy.kernels import cpu
    from llmpy.models.precision import resolve
    from llmpy.models.presets import is_descriptor

    precision = args.precision if args.precision in (None, EIGHT_BITS) else resolve(args.precision)
    threads, batch_size = cpu.set_threads(args.threads), args.batch_size or 1
    if args.profile:
        raise UserError("--profile is of a training step: llmpy bench train --profile, not decode")
    if batch_size > 1 and (args.prompt or args.against):
        raise UserError("texts side by side are measured beside one alone: leave out --prompt and --against")
    torch = peers.torch_peers(args.peer_mode, not args.no_compile) if args.against == "torch" else []
    rivals = decode_peers.rivals(args.against, args.binary, args.python, torch)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if is_descriptor(model) and not Path(model).exists():
            model = str(decode.write_random(shape_of(args, args.prompt or 1), Path(folder)))
        elif any(getattr(args, name) is not None for name in SIZES):
            raise UserError(f"{model} has a shape of its own: leave out --layers, --heads, --channels, --vocab-size")
        work = decode.Generation(model, precision, threads, args.tokens, batch_size, args.prompt or 0)
        return decode.bench(work, args.rounds, rivals, Path(folder)) | {"source": args.model}


def shape_of(args: argparse.Namespace, length: int) -> ModelConfig:
    """The model's shape, with what the flags change; its context is as long as the sequences need."""
    from dataclasses import replace

    from llmpy.models.presets import from_descriptor

    config = from_descriptor(args.model)
    sizes: dict[str, Any] = {name: size for name in SIZES if (size := getattr(args, name)) is not None}
    if sizes.keys() & {"heads", "channels"}:  # other sizes follow from these two
        sizes |= dict.fromkeys({"kv_heads", "hidden", "head_size"} & vars(config).keys(), 0)
    return replace(config, **sizes, context=max(config.context, length))
