"""Models straight from huggingface.co by name: only the files that are needed, kept in the cache of huggingface_hub."""

from __future__ import annotations

import re
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from llmpy.errors import UserError
from llmpy.formats.chat_template_files import TEMPLATE, TOKENIZER_CONFIG
from llmpy.formats.huggingface.folder import CONFIG, INDEX, WEIGHTS, read_config, read_json

TOKENIZER, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
PROBE_SECONDS = 5


def is_hub_name(name: str) -> bool:
    """Could this be the name of a model there ("gpt2", "openai-community/gpt2") rather than of a file here?"""
    file_like = Path(name).suffix in (".bin", ".json", ".txt", ".safetensors", ".pt", ".pth", ".gguf", ".model")
    return re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name) is not None and not file_like


def download_model(name: str) -> Path:
    """The folder of a model in the cache, brought there where it is not. Raises UserError where that fails.

    config.json comes first: a model that cannot be run is refused before its weights are downloaded.
    """
    first = _get(name, CONFIG)
    if first is None:
        raise UserError(f"{name} on the hub has no {CONFIG}: it is not a model that llm.py runs")
    folder = first.parent
    read_config(folder)
    revision = folder.name  # the folder is named by the commit: all files come from the same one
    if _get(name, WEIGHTS, revision) is None:
        index = _get(name, INDEX, revision)
        if index is None:
            raise UserError(f"{name} on the hub has no {WEIGHTS}, and pickles are not opened: choose another model")
        for shard in sorted({str(shard) for shard in read_json(index).get("weight_map", {}).values()}):
            _get(name, shard, revision)
    if _get(name, TOKENIZER, revision) is None:
        _get(name, SENTENCEPIECE, revision)
    with suppress(UserError):  # what is in the cache without them runs without a network as well
        for file in (TOKENIZER_CONFIG, TEMPLATE):
            _get(name, file, revision)
    return folder


def download_tokenizer(name: str) -> Path:
    """The tokenizer's file of a model, in the cache. Raises UserError where it cannot be had."""
    for file in (TOKENIZER, SENTENCEPIECE):
        if (found := _get(name, file)) is not None:
            return found
    raise UserError(f"{name} on the hub has neither {TOKENIZER} nor {SENTENCEPIECE}: name another, or a file")


def _get(name: str, file: str, revision: str | None = None) -> Path | None:
    """The file in the cache, downloaded only where it is not there yet; None where the model has none of that name."""
    import huggingface_hub

    cached: Any = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:  # the cache knows that there is none
        return None
    _check_network(name)
    return _download(name, file, revision)


def _check_network(name: str) -> None:
    """A mistyped path must not wait for all the attempts that huggingface_hub makes to find a network."""
    from huggingface_hub import constants

    url = urlsplit(constants.ENDPOINT)
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        if url.hostname and url.scheme not in getproxies():
            address = (url.hostname, url.port or (443 if url.scheme == "https" else 80))
            socket.create_connection(address, PROBE_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"there is no file or folder {name} here, a model of that name is not in the cache of huggingface_hub, and"
            f" {url.hostname} cannot be reached ({error.strerror or error}): check the path, or try with a network"
        ) from error


def _download(name: str, file: str, revision: str | None) -> Path | None:
    import huggingface_hub
    from huggingface_hub import utils

    utils.logging.set_verbosity_error()  # what fails is said in our one line
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
    except utils.LocalEntryNotFoundError as error:  # before its base class: the network failed, after several attempts
        raise UserError(f"cannot get {file} of {name} from the hub: the network failed: try again") from error
    except utils.EntryNotFoundError:
        return None
    except utils.GatedRepoError as error:
        raise UserError(f"{name} is gated: accept its terms on the hub, then log in (hf auth login)") from error
    except utils.RepositoryNotFoundError as error:
        raise UserError(f"{name} is neither a file or folder here nor a model on the hub: check the name") from error
    except Exception as error:  # of requests or of httpx, by the version of huggingface_hub; a full disk; ...
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cannot get {file} of {name} from the hub ({why}): try again, or give a path") from error
