"""`config.toml`: writes the settings of a run to a file with a checksum, and reads them back."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from llmpy import __version__
from llmpy.errors import UserError
from llmpy.training.config import TrainConfig

HEADER = "# llmpy train"  # the first characters of a file that a run wrote
SEAL = "# sha256 "  # the first characters of its last line
_COMMENT_COLUMN = 32


def to_toml(config: TrainConfig) -> str:
    """The text of a `config.toml`: by section, each setting with what it means, and sealed against damage."""
    lines = [
        f"{HEADER}, version {__version__}: `llmpy train --config THIS_FILE` repeats the run.",
        "# To change something: copy the file, edit the copy, and remove its last line, which holds a checksum.",
    ]
    section = None
    for setting in fields(config):
        if setting.metadata["section"] != section:
            section = setting.metadata["section"]
            lines += ["", f"[{section}]"]
        value = getattr(config, setting.name)
        line = f"# {setting.name} =" if value is None else f"{setting.name} = {_toml_value(value)}"
        described = f"{line:<{_COMMENT_COLUMN}}# {setting.metadata['help']}"
        lines += [described] if len(described) <= 120 else [f"# {setting.metadata['help']}", line]
    text = "\n".join(lines) + "\n\n"
    return f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def read_toml(path: Path, sealed: bool = False) -> dict[str, Any]:
    """The settings that a file gives, unchecked but for their names. `sealed`: it must still be as a run wrote it.

    Raises UserError for a file that is no TOML, has settings of other names, or fails its own checksum.
    """
    try:
        text = path.read_bytes().decode()
        sections = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError
        raise UserError(f"{path} is damaged or no TOML: {' '.join(str(error).split())}") from error
    _check_seal(path, text, sealed)
    settings: dict[str, Any] = {}
    known = {setting.name: setting.metadata["section"] for setting in fields(TrainConfig)}
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: {section} stands outside of a [section]: {_suggest(section, known)}")
        for name, value in values.items():
            if known.get(name) != section:
                raise UserError(f"{path}: there is no setting {name} in [{section}]: {_suggest(name, known)}")
            settings[name] = value
    return settings


def _suggest(name: str, known: Mapping[str, str]) -> str:
    if near := difflib.get_close_matches(name, known, 1):
        return f"[{known[near[0]]}] {near[0]} is one"
    return "llmpy train --help shows all"


def _check_seal(path: Path, text: str, sealed: bool) -> None:
    body, _, seal = text.rpartition(SEAL)
    if not body and not sealed:
        return  # written by hand
    if not body or seal.rstrip("\n") != hashlib.sha256(body.encode()).hexdigest():
        edited = "restore it, and change settings by flags" if sealed else "if you edited it, remove its last line"
        raise UserError(f"{path} is not as the run wrote it (its checksum does not match): {edited}")
