"""Converse with a model that was taught to, in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmpy.cli import generation
from llmpy.errors import UserError

if TYPE_CHECKING:
    from llmpy.inference.conversation import Conversation

EXAMPLES = """examples:
  llmpy chat HuggingFaceTB/SmolLM2-135M-Instruct       a small model from the hub
  llmpy chat model.gguf --system "Answer in rhymes."   what the model is told before all else
  llmpy chat stories15M.bin --template llama2          a template by name, where the model brings none
  llmpy chat model.gguf -t 0 < questions.txt           every line a message; the answers alone on stdout

A line is a message; /help lists the commands. Ctrl-C stops an answer, Ctrl-D leaves.
"""
HELP = """/reset      forget what was said and begin anew
/save FILE  write the conversation as JSON
/help       this list
/quit       leave (so do Ctrl-D, and Ctrl-C twice)
A message that begins with a slash is written with two. Ctrl-C stops an answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    generation.add_arguments(parser, None, "tokens that an answer may have (default: as many as the context holds)")
    parser.add_argument("-y", "--system", metavar="TEXT", help="what the model is told before all else")
    parser.add_argument("-i", "--prompt", metavar="TEXT", help="the first message")
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="llama2, llama3, chatml or a file of Jinja's (default: the model's own, or by its vocabulary)",
    )


def run(args: argparse.Namespace) -> int:
    from llmpy.inference.chat_template import find_template
    from llmpy.inference.conversation import Conversation

    if args.steps is not None and args.steps < 1:
        raise UserError(f"an answer must have room for 1 token or more, not {args.steps}")
    seed = generation.seed(args)
    model, engine = generation.start(args)
    assert engine.tokenizer is not None
    template = find_template(model, engine.tokenizer, args.template)
    options = generation.sampling_options(args)
    conversation = Conversation(engine, template, args.system, args.steps, seed, args.stop, **options)
    generation.with_utf8_stdout()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - gives `input` the editing of a line
        note(f"{model.kind}; template {template.name}; context {engine.context} tokens; --seed {seed}; /help for help")
    session = Session(conversation, str(args.model), interactive)
    return session.hold(args.prompt)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Session:
    """Reads lines and shows answers until there are no more."""

    def __init__(self, conversation: Conversation, model: str, interactive: bool) -> None:
        self.conversation, self.model, self.interactive = conversation, model, interactive
        self._told_of_forgetting = False

    def hold(self, first: str | None) -> int:
        """The whole conversation; the exit status. A mistake ends it only where nobody is there to mend it."""
        interrupted = False  # at the prompt, and nothing typed since
        line = first
        while True:
            try:
                if line is None:
                    line = self._read()
                interrupted = False
                if line is None or not self._obey(line.strip()):
                    return 0
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                if interrupted:
                    note("")
                    return 0
                interrupted = True
                note("\n(Ctrl-C again leaves)")
            except UserError as error:
                if not self.interactive:
                    raise
                note(f"llmpy: error: {error}")
            line = None

    def _read(self) -> str | None:
        """The next line; None at the end."""
        if not self.interactive:
            return sys.stdin.readline() or None
        try:
            if sys.stdout.isatty():
                return input("> ")
            print("> ", end="", file=sys.stderr, flush=True)
            return input()
        except EOFError:
            note("")
            return None

    def _obey(self, line: str) -> bool:
        """A command or a message; False where it was the last."""
        command, _, rest = line.partition(" ")
        if line.startswith("//") or not line.startswith("/"):
            if line:
                self._answer(line.removeprefix("/") if line.startswith("//") else line)
        elif command == "/quit":
            return False
        elif command == "/help":
            note(HELP)
        elif command == "/reset":
            self.conversation.reset()
            self._told_of_forgetting = False
            note("begun anew")
        elif command == "/save":
            if not rest.strip():
                raise UserError("/save needs the name of a file")
            path = Path(rest.strip()).expanduser()
            self.conversation.save(path, self.model)
            note(f"saved in {path}")
        else:
            raise UserError(f"there is no command {command}: /help lists them; a message may begin with //")
        return True

    def _answer(self, text: str) -> None:
        try:
            with contextlib.closing(self.conversation.answer(text)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            note("\n(stopped)")
            return
        print(flush=True)
        if self.conversation.forgotten and not self._told_of_forgetting:
            self._told_of_forgetting = True
            note("(the context is full: from here on the oldest messages are forgotten)")
