"""The command line. Each command is a module of this package: `add_arguments` says what it takes, `run` calls and prints."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from llmpy.errors import UserError

COMMANDS = {
    "prepare": "turn text into shards of tokens",
    "train": "train a model on text, from scratch or from a checkpoint",
    "run": "generate text with a model",
    "convert": "write a model in another project's file format",
    "info": "describe any file or folder that llm.py reads",
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


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; only the module of `command` is imported, so that help and errors come at once."""
    parser = argparse.ArgumentParser(
        prog="llmpy", description="LLM training and inference in plain Python.", epilog=EXAMPLES, formatter_class=_Formatter
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        if name != command:
            commands.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"llmpy.cli.{name}")
        # llm.c's train takes -h with a value, so a command may keep -h to itself and offer --help alone.
        own_h = getattr(module, "OWN_H_FLAG", False)
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=_Formatter,
            add_help=not own_h,
            allow_abbrev=False,
        )
        if own_h:
            sub.add_argument("--help", action="help", help="show this help and stop")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 a mistake or a failure (said in one line), 2 wrong usage, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if word in COMMANDS), None) if not argv or not argv[0].startswith("-") else None
    parser = build_parser(command)
    args = parser.parse_args(argv)
    if args.version:
        from llmpy import __version__

        print(f"llmpy {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except UserError as error:
        print(f"llmpy: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("llmpy: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: silence the flush at exit, end quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
