"""The flags that say what computes, for the commands that run a model."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="auto",
        help="whose kernels to use: auto (the default), cpu, or reference, which is slow NumPy",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="threads to compute with (default: the physical cores)"
    )


def start(args: argparse.Namespace) -> str:
    """Make the kernels ready, and return the backend's name. Raises UserError for one that there is not."""
    from llmpy import kernels

    backend = "cpu" if args.device == "auto" else args.device
    kernels.start(backend, args.threads)
    return backend
