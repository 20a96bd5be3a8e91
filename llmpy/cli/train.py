"""Train a model on text, from scratch, from another model, or on from where a run stopped."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpy.cli.generation import with_utf8_stdout
from llmpy.errors import UserError
from llmpy.training.config import TrainConfig, flag, from_settings, merged, setting_types
from llmpy.training.config_file import read_toml

if TYPE_CHECKING:
    from llmpy.training.trainer import Result, Trainer

EXAMPLES = """examples:
  llmpy train                                              a small model of the Python manual, in about a minute
  llmpy train my-book.txt --out runs/my-book               of your own text
  llmpy train --data shakespeare --tokenizer bytes --layers 6 --heads 6 --channels 384 --steps 1000
  llmpy train --data shakespeare --model d12 --batch-size 4 --sequence-length 64 --steps 100
  llmpy train stories.txt --model llama:15M --layers 4     a Llama; sizes go over those of a named shape
  llmpy train my-book.txt --init gpt2 --lr 3e-5            go on training GPT-2 on your text
  llmpy train stories.txt --init stories15M.bin --lr 1e-4  or a model of any file that llmpy run takes
  llmpy train --resume --out runs/my-book                  go on where a run stopped
  llmpy train --config runs/my-book/config.toml --out runs/again --seed 7
  llmpy train -i "data/*_train_*.bin" -j "data/*_val_*.bin" -e d12 -b 4 -t 1024 -d 8192 -x 100

Losses and samples go to stdout, all else to stderr. Flags of llm.c that ask for what comes in a later version say so:
-h (HellaSwag), -z -pn -pr -pg -pi -ps -pf (several processes).
"""
OWN_H_FLAG = True
DEFAULT_OUT = "runs/default"
SEVERAL = "training on several processes comes in a later version: leave it out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "llmpy train [DATA] [flags]; llmpy train --help shows them"
    parser.add_argument("data_argument", nargs="?", metavar="DATA", help="the same as --data DATA")
    run = parser.add_argument_group("run")
    run.add_argument(
        "-o", "--out", metavar="DIR", help=f"folder of the run (default: {DEFAULT_OUT}, or runs/NAME of DATA)"
    )
    run.add_argument("--resume", action="store_true", help="go on with the run in that folder, bit for bit")
    run.add_argument("-y", dest="resume", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    run.add_argument(
        "--overwrite", action="store_true", help="start anew in a folder that holds a run, which is removed"
    )
    run.add_argument("--config", metavar="FILE", help="settings from a file (config.toml of a run); flags come on top")
    run.add_argument("--stop-after", metavar="N", type=int, help="stop when N steps are done, as Ctrl-C would")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for setting in fields(TrainConfig):
        section = setting.metadata["section"]
        group = groups.get(section) or groups.setdefault(section, parser.add_argument_group(section))
        _add_setting(group, setting.name, setting.default, dict(setting.metadata))
    for short, (harmless, message) in _OF_LLMC.items():
        parser.add_argument(short, action=_OfLlmC, harmless=harmless, message=message, help=argparse.SUPPRESS)


def _add_setting(group: Any, name: str, default: Any, about: dict[str, Any]) -> None:
    """Adds the flag of a setting; the default None lets a file or a run give the value."""
    kind, _ = setting_types()[name]
    text = about["help"].replace("%", "%%")
    if kind is bool:
        group.add_argument(flag(name), action="store_true", default=None, help=text)
        if about["short"]:
            group.add_argument(about["short"], dest=name, type=_zero_or_one, help=argparse.SUPPRESS)
        return
    if default is not None and default != "" and "default" not in text:
        text += f" (default {default})"
    names = [about["short"], flag(name)] if about["short"] else [flag(name)]
    choices = "|".join(map(str, about["choices"] or ()))
    metavar = about["metavar"] or choices or {int: "N", float: "X"}[kind]
    group.add_argument(*names, dest=name, type=kind, metavar=metavar, help=text)


def _zero_or_one(text: str) -> bool:
    if text not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"0 or 1, not {text!r}")
    return text == "1"


class _OfLlmC(argparse.Action):
    """A flag of llm.c that is known but not taken: `harmless` values pass, others end with the message, status 2."""

    def __init__(self, option_strings: list[str], dest: str, harmless: str, message: str, **more: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, **more)
        self.harmless, self.message = harmless.split(), message

    def __call__(self, parser: argparse.ArgumentParser, _: Any, values: Any, option_string: str | None = None) -> None:
        if values not in self.harmless:
            parser.exit(2, f"llmpy: error: {option_string} {values}: {self.message}\n")


_OF_LLMC = {  # flag -> the values that ask for nothing, and what to say of the others
    "-h": ("0", "HellaSwag comes in a later version: leave it out"),
    "-w": ("0 1", "0 or 1; float32 parameters, which there are, need no others beside them"),
    "-ge": ("0 1 2", "0, 1 or 2; GELU is always fused into the products around it"),
    "-z": ("0", "sharing the optimizer among processes comes in a later version: leave it out"),
    "-pn": ("1", SEVERAL),
    "-pr": ("0", SEVERAL),
    "-pg": ("1", SEVERAL),
    "-pi": ("", SEVERAL),
    "-ps": ("", SEVERAL),
    "-pf": ("", SEVERAL),
}


def run(args: argparse.Namespace) -> int:
    given = {name: getattr(args, name) for name in setting_types() if getattr(args, name) is not None}
    if args.data_argument is not None:
        if "data" in given:
            raise UserError(f"the data are given twice: {args.data_argument} and --data {given['data']}")
        given["data"] = args.data_argument
    if args.stop_after is not None and args.stop_after < 1:
        raise UserError(f"--stop-after must be at least 1, not {args.stop_after}")
    if args.resume and args.overwrite:
        raise UserError("--resume continues a run and --overwrite removes it: give one of them")
    with_utf8_stdout()
    trainer, out = _make_trainer(args, given)
    print(trainer.describe(), file=sys.stderr)
    if trainer.step == trainer.config.steps:
        print(f"all {trainer.step} steps are done already: --steps N goes on to more", file=sys.stderr)
        return 0
    return _report(trainer, trainer.train(), out)


def _make_trainer(args: argparse.Namespace, given: dict[str, Any]) -> tuple[Trainer, Path]:
    """Returns a new or resumed run, and its folder."""
    settings = merged(read_toml(Path(args.config)), given) if args.config else given
    out = Path(args.out).expanduser() if args.out else default_out(settings.get("data"))

    from llmpy.training import checkpoint
    from llmpy.training.trainer import Trainer

    if args.resume and checkpoint.holds_run(out):
        if args.config:
            raise UserError(f"--resume goes on with the settings in {out / 'config.toml'}: leave out --config")
        trainer = Trainer.resume(out, given, stop_after=args.stop_after)
        print(f"going on with {out} at step {trainer.step}", file=sys.stderr)
        return trainer, out
    if args.resume:
        print(f"{out} holds no run yet: starting at the beginning", file=sys.stderr)
    config = from_settings(settings, args.config or "")
    return Trainer(config, out, overwrite=args.overwrite, stop_after=args.stop_after), out


def default_out(data: str | None) -> Path:
    """runs/default, or for other data than the default runs/ and its name."""
    if data is None:
        return Path(DEFAULT_OUT)
    stem = re.sub(r"_train.*", "", Path(data).stem)
    return Path("runs") / (re.sub(r"[^\w-]+", "_", stem).strip("_") or "text")


def _report(trainer: Trainer, result: Result, out: Path) -> int:
    """Prints the result and the next command."""
    from llmpy.utils.progress_bar import duration

    losses = {"train loss": result.train_loss, "validation loss": result.val_loss}
    told = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None)
    print(f"{result.step} steps in {duration(result.seconds)}; {told}", file=sys.stderr)
    folder = shlex.quote(str(out))
    if result.reason == "finished":
        prompt = ' "The for statement"' if trainer.config.data == "python-docs" else ""
        print(f"the model is in {out}; let it write more:\n  llmpy run {folder}{prompt} -t 0.8", file=sys.stderr)
        return 0
    print(f"stopped, and saved in {out}; go on with:\n  llmpy train --resume --out {folder}", file=sys.stderr)
    return 130 if result.reason == "signal" else 0
