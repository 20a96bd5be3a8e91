"""The command line. Each command is a module of this package: `add_arguments` says what it takes, `run` calls and
prints."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from llmpy import __version__
from llmpy.errors import UserError

COMMANDS = {
    "prepare": "turn text into shards of tokens",
    "train": "train a model on text, from scratch or from a checkpoint",
    "run": "generate text with a model",
    "chat": "converse with a model in the terminal",
    "convert": "write a model in another project's file format",
    "info": "describe any file or folder that llm.py reads",
    "doctor": "say what this installation has for the CPU and a GPU, and how to mend the rest",
    "bench": "measure speed, beside PyTorch on the same machine",
}
EXAMPLES = """examples:
  llmpy train                               train a small model for a minute, on text that is always there
  llmpy train my-book.txt                   the same on your own text
  llmpy run runs/default "The for loop"     let it write
  llmpy COMMAND --help                      all flags of a command, with examples
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples; long flags get room before their help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=120)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `llmpy` alone: it knows the commands' names and summaries, and imports none of them."""
    parser = argparse.ArgumentParser(
        prog="llmpy",
        description="LLM training and inference in plain Python.",
        epilog=EXAMPLES,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"llmpy {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def build_command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command, whose module is imported."""
    module = importlib.import_module(f"llmpy.cli.{name}")
    # llm.c's train takes -h with a value, so a command may keep -h to itself and offer --help alone.
    own_h = getattr(module, "OWN_H_FLAG", False)
    parser = argparse.ArgumentParser(
        prog=f"llmpy {name}",
        description=module.__doc__,
        epilog=module.EXAMPLES,
        formatter_class=_Formatter,
        add_help=not own_h,
        allow_abbrev=False,
    )
    if own_h:
        parser.add_argument("--help", action="help", help="show this help and stop")
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 a mistake or a failure (said in one line), 2 wrong usage, 130
    interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        build_parser().print_help()
        return 0
    if argv[0] not in COMMANDS:
        build_parser().parse_args(
            argv
        )  # --help, --version, or a word that is no command: argparse says which there are
        return 2
    try:
        # Intermixed: `llmpy train --steps 10 my.txt` means what it says.
        args = build_command_parser(argv[0]).parse_intermixed_args(argv[1:])
        return args.run(args)
    except UserError as error:
        print(f"llmpy: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("llmpy: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence_output()  # the reader (head, less) has gone: end quietly
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _silence_output()
        print("llmpy: error: the disk is full: free some space and run it again", file=sys.stderr)
        return 1


def _silence_output() -> None:
    """Output that cannot be written any more must not fail a second time in the flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
