"""The flags that say what computes, for the commands that run a model."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="auto",
        help="what computes: auto (the default: a GPU of NVIDIA's, where there is one that can be used, else the CPU), "
        "cpu, cuda, cuda:1 for the second GPU, or reference, which is slow NumPy",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="threads to compute with (default: the physical cores)"
    )


def start(args: argparse.Namespace, precision: str = "float32") -> str:
    """Make the kernels of a precision ready -> the backend's name. Raises UserError for one that there is not."""
    from llmpy import kernels

    backend = name(args)
    kernels.start(backend, args.threads, precision)
    return backend


def name(args: argparse.Namespace) -> str:
    """Of the backend that --device asks for."""
    from llmpy import kernels

    return kernels.backend_of(args.device)
