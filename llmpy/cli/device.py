"""The flags that say what computes, for the commands that run a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmpy.errors import UserError


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
        help="numbers to compute with: float32, bfloat16, or auto, bfloat16 where that is faster (default: those of a "
        "run's training, else float32)",
    )


def start(args: argparse.Namespace) -> tuple[str, str]:
    """Make the kernels ready -> the backend's name and the precision. Raises UserError for one that there is not."""
    from llmpy import kernels
    from llmpy.precision import resolve

    backend = "cpu" if args.device == "auto" else args.device
    precision = resolve(args.precision or _trained_in(Path(args.model).expanduser(), backend), backend)
    kernels.start(backend, args.threads, precision)
    return backend, precision


def _trained_in(run: Path, backend: str) -> str:
    """The precision of a run folder's training, whose kernels are compiled already; float32 for any other model."""
    from llmpy.run_config import read_toml

    if backend == "cpu" and (run / "config.toml").is_file():
        try:
            return str(read_toml(run / "config.toml").get("precision", "float32"))
        except UserError:  # whatever is wrong with its settings, the model may be whole
            return "float32"
    return "float32"
