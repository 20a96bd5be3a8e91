"""Flags that choose the device and the threads, for the commands that run a model."""

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
    """Starts the kernels of a precision and returns the backend's name; raises UserError for a missing backend."""
    from llmpy import kernels

    backend = name(args)
    kernels.start(backend, args.threads, precision)
    return backend


def name(args: argparse.Namespace) -> str:
    """Returns the name of the backend that --device chooses."""
    from llmpy import kernels

    return kernels.backend_of(args.device)
