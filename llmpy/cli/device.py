"""The flags that say what computes, and the start of it: what commands that run a model share."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=["cpu", "reference"], default="cpu", help="whose kernels to use (default cpu)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="threads to compute with (default: the physical cores; cpu only)"
    )


def start(device: str, threads: int | None) -> None:
    """Set the threads, and compile the kernels or load what was compiled, showing how far it is if it takes time."""
    if device != "cpu":
        return
    from llmpy.kernels import cpu
    from llmpy.progress import bar

    cpu.set_threads(threads)
    with bar("compiling the kernels (once on this machine)") as progress:

        def report(done: int, total: int, name: str) -> None:
            progress.total, progress.description = total, f"compiling the kernels (once on this machine): {name}"
            progress.advance(done - progress.done)

        cpu.compile_all(report)
