"""The flags that say what computes, for the commands that run a model."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser, precision: bool = True) -> None:
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="auto",
        help="whose kernels to use: auto (the default), cpu, or reference, which is slow NumPy",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="threads to compute with (default: the physical cores)"
    )
    if not precision:
        parser.set_defaults(precision="float32")
        return
    parser.add_argument(
        "--precision",
        metavar="NAME",
        default="float32",
        help="numbers to compute with: float32 (the default), bfloat16, or auto, bfloat16 where that is faster",
    )


def start(args: argparse.Namespace) -> tuple[str, str]:
    """Make the kernels ready -> the backend's name and the precision. Raises UserError for one that there is not."""
    from llmpy import kernels
    from llmpy.precision import resolve

    backend = "cpu" if args.device == "auto" else args.device
    precision = resolve(args.precision, backend)
    kernels.start(backend, args.threads, precision)
    return backend, precision
