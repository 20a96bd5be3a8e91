"""The checksums of a checkpoint: DONE holds that of state.json, which holds those of the other files."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from llmpy.errors import UserError
from llmpy.formats.detect import DONE
from llmpy.utils.atomic_files import sha256_of

STATE = "state.json"


def damaged_files(checkpoint: Path, names: Collection[str] | None = None) -> list[str]:
    """The files of a checkpoint that are not as they were written; only `names` and state.json are read, if given.

    None of a folder that is no checkpoint of ours. Raises UserError where a file that is there cannot be read.
    """
    if not (checkpoint / STATE).exists() or not (checkpoint / DONE).exists():
        return []
    try:
        if (checkpoint / DONE).read_text("ascii", "replace").strip() != sha256_of(checkpoint / STATE):
            return [STATE]
        sealed: dict[str, str] = json.loads((checkpoint / STATE).read_bytes()).get("sha256", {})
        return [
            name
            for name, checksum in sealed.items()
            if (names is None or name in names)
            and not ((checkpoint / name).is_file() and sha256_of(checkpoint / name) == checksum)
        ]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror or error}") from error
