"""A process of the benchmark: `module:function` with arguments gives rows, which go to stdout as lines of JSON.

Each part has a process of its own, so that one that fails, hangs or fills the card leaves nothing behind, and PyTorch
is where nothing of ours is.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

from llmpy.errors import UserError


def main(target: str, arguments: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    module, _, name = target.partition(":")
    try:
        for row in getattr(importlib.import_module(module), name)(**json.loads(arguments)):
            print(json.dumps(row), file=answers, flush=True)
    except UserError as error:
        print(json.dumps({"problem": str(error)}), file=answers, flush=True)
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().splitlines()
        print(json.dumps({"problem": f"{type(error).__name__}: {said[0] if said else ''}"}), file=answers, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
