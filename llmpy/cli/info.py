"""Describe any file or folder that llm.py reads: what it is, its sizes, and whether it is sound."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpy.cli import device
from llmpy.errors import UserError

if TYPE_CHECKING:
    from llmpy.tools.describe import Description

EXAMPLES = """examples:
  llmpy info runs/default                            a run: its checkpoints, losses, model and configuration
  llmpy info gpt2_124M.bin --tensors                 a model, with every tensor
  llmpy info data/shakespeare_val.bin                a shard of tokens, the first of them as text
  llmpy info gpt2_124M.bin --check gpt2_124M_debug_state.bin   run the model, compare with what another program found

The exit status is 1 where something is damaged, does not agree, or is of no kind that is read.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="a file or folder")
    parser.add_argument(
        "--tensors", action="store_true", help="list every tensor: shape, type, mean, standard deviation"
    )
    parser.add_argument("--check", metavar="STATE", type=Path, help="compare an llm.c model with its debug state")
    parser.add_argument("--tokenizer", metavar="NAME", help="to show tokens as text: gpt2, bytes or a tokenizer's file")
    device.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    path = args.path.expanduser()
    if args.check:
        return run_check(path, args)

    from llmpy.tokenization.base import Tokenizer
    from llmpy.tools.describe import describe, to_json

    description = describe(path, Tokenizer.from_spec(args.tokenizer) if args.tokenizer else None)
    if not args.tensors:
        description.tensors = []
    if args.json:
        print(to_json(description))
    else:
        print_description(description)
    return 1 if description.problems else 0


def print_description(description: Description) -> None:
    """Lines of "name: value", the tables of a configuration indented, then the tensors."""
    print(f"{description.path}: {description.kind}")
    print_facts(description.facts)
    print_facts({"sound": "no: " + "; ".join(description.problems) if description.problems else "yes"})
    for tensor in description.tensors:
        shape = " x ".join(map(str, tensor["shape"]))
        figures = f"{tensor['mean']:12.4e} {tensor['std']:12.4e}"
        print(f"  {tensor['name']:36} {tensor['dtype']:9} {shape:20} mean, std {figures}")


def print_facts(facts: dict[str, Any], indent: int = 2) -> None:
    for name, value in facts.items():
        label = " " * indent + name.replace("_", " ")
        if isinstance(value, dict):
            print(label)
            print_facts(value, indent + 2)
        else:
            print(f"{label:24} {as_text(value)}")


def as_text(value: Any) -> str:
    if isinstance(value, bool | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if "\n" in str(value) else str(value)


def run_check(model: Path, args: argparse.Namespace) -> int:
    """Logits, loss and every gradient of our model beside those in the file."""
    from llmpy.formats.llmc.debug_state import check_debug_state

    state = args.check.expanduser()
    differences = check_debug_state(model, state, device.start(args))
    failed = [difference.name for difference in differences if not difference.passed]
    if args.json:
        print(json.dumps({"passed": not failed, "tensors": [vars(difference) for difference in differences]}, indent=2))
    else:
        for d in differences:
            mark = "ok" if d.passed else "DIFFERS"
            print(f"{d.name:12} largest difference {d.absolute:10.3e}, relative {d.relative:10.3e}  {mark}")
    if failed:
        raise UserError(f"{model} does not agree with {state} in {', '.join(failed)}")
    return 0
