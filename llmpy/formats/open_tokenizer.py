"""A tokenizer wherever it may be: a name, a file, a model's folder, a GGUF, the hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llmpy.errors import UserError
from llmpy.formats.huggingface import hub
from llmpy.formats.load import load_tokenizer
from llmpy.tokenization.base import Tokenizer


def open_tokenizer(spec: str, texts: Iterable[str] = ()) -> Tokenizer:
    """Opens the tokenizer that `--tokenizer` names.

    `spec` is a spec of `Tokenizer.from_spec`, a folder that holds a tokenizer, a GGUF, or a model's name on the hub.
    Raises UserError if no tokenizer is found.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        names = (hub.TOKENIZER, hub.SENTENCEPIECE)
        found = next((path / name for name in names if (path / name).exists()), None)
        if found is None:
            raise UserError(f"the folder {path} holds no {' or '.join(names)}: give a tokenizer's file")
        return Tokenizer.load(found)
    if path.suffix == ".gguf" and path.exists():
        return load_tokenizer(path)
    if not path.exists() and "/" in spec and hub.is_hub_name(spec):
        return Tokenizer.load(hub.download_tokenizer(spec))
    return Tokenizer.from_spec(spec, texts)
