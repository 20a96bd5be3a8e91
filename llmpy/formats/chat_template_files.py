"""The chat template that a model brings with it: chat_template.jinja, tokenizer_config.json, or a GGUF's metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpy.errors import UserError
from llmpy.formats.gguf.file import GGUFFile
from llmpy.formats.huggingface.folder import read_json

TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
_GGUF_TEMPLATE = "tokenizer.chat_template"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class StoredTemplate:
    """Jinja's source and where it is from; `names` are the texts that it calls bos_token, eos_token, ..."""

    source: str
    where: str
    names: dict[str, str]


def read_chat_template(place: Path) -> StoredTemplate | None:
    """The template of a model at `place`, a folder, a file in one, or a GGUF; None where there is none.

    Raises UserError for a file that is damaged.
    """
    if place.suffix == ".gguf":
        return _in_gguf(GGUFFile(place))
    folder = place if place.is_dir() else place.parent
    path, config_path = folder / TEMPLATE, folder / TOKENIZER_CONFIG
    config = read_json(config_path) if config_path.exists() else {}
    names = {name: text for name in _SPECIAL if (text := _content(config.get(name)))}
    if path.exists():
        return StoredTemplate(read_template_file(path), str(path), names)
    source = config.get("chat_template")
    if isinstance(source, list):  # several, each with a name
        found = [
            entry.get("template") for entry in source if isinstance(entry, dict) and entry.get("name") == "default"
        ]
        source = found[0] if found else None
    return StoredTemplate(source, str(config_path), names) if isinstance(source, str) else None


def template_of(*places: object) -> StoredTemplate | None:
    """The template of a model in the first of the places that has one: where it is from, where its tokenizer is."""
    paths = (place for place in places if isinstance(place, Path))
    return next((found for path in paths if (found := read_chat_template(path))), None)


def template_files(template: StoredTemplate) -> dict[str, str]:
    """The files that hold a template beside a model, by name: what `read_chat_template` finds again."""
    return {TEMPLATE: template.source, TOKENIZER_CONFIG: json.dumps(template.names, indent=1) + "\n"}


def read_template_file(path: Path) -> str:
    """Jinja's source in a file of its own. UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read the chat template {path}: {reason}") from error


def _content(value: Any) -> str | None:
    """A token's text, which may stand in a table of its properties."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _in_gguf(file: GGUFFile) -> StoredTemplate | None:
    source = file.metadata.get(_GGUF_TEMPLATE)
    if not isinstance(source, str):
        return None
    tokens, names = file.metadata.get("tokenizer.ggml.tokens"), {}
    for name in ("bos", "eos"):
        token = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(tokens, list) and type(token) is int and 0 <= token < len(tokens):
            names[f"{name}_token"] = tokens[token]
    return StoredTemplate(source, str(file.path), names)
