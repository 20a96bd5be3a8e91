"""The folder of a run: every file that a run needs to resume bit for bit after it was stopped.

    config.toml  main.log  metrics.jsonl  tokenizer.json  [chat_template.jinja  tokenizer_config.json]
    step_00001000/  model.safetensors  config.json  optimizer_rank0.safetensors  state.json  DONE

A checkpoint is written under another name, synced, and renamed; `DONE`, its last file, holds the checksum of
`state.json`, which holds those of the others. Killed at any moment, a run has its last checkpoint whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.formats import run_folder
from llmpy.formats.chat_template_files import TEMPLATE, TOKENIZER_CONFIG, StoredTemplate, template_files
from llmpy.formats.detect import DONE, newest_step
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface.hub import TOKENIZER
from llmpy.formats.huggingface.safetensors import SafetensorsFile, TensorToWrite, write
from llmpy.formats.run_folder import STATE
from llmpy.models.transformer import Model
from llmpy.training.config_file import HEADER
from llmpy.utils.atomic_files import cannot_write, make_dir, sha256_of, sync_dir, write_atomic, write_text_atomic
from llmpy.utils.progress_bar import amount

CONFIG, MAIN_LOG, METRICS = "config.toml", "main.log", "metrics.jsonl"
OPTIMIZER = "optimizer_rank0.safetensors"
CHECKED = (huggingface.CONFIG, huggingface.WEIGHTS, OPTIMIZER)
BESIDE = (TOKENIZER, TEMPLATE, TOKENIZER_CONFIG)  # what goes with the model, and does not change with it
PROBE = ".llmpy-probe"
_FORMAT = 1

__all__ = ["check_free", "check_space", "load", "newest_step", "prune", "reopen_run", "save", "start_run", "verify"]


# ---- the folder ----------------------------------------------------------------------------------------------------


def holds_run(folder: Path) -> bool:
    """Returns whether a run was started in the folder."""
    return _is_ours(folder / CONFIG) or newest_step(folder) is not None


def check_free(folder: Path, overwrite: bool = False) -> None:
    """Raises UserError where a run in `folder` would write over something (another run, unless `overwrite`) or cannot.

    Nothing is written yet: an early look, before time is spent on what comes before the first file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a run needs a folder: choose another --out")
    standing = _standing(folder)
    if not os.access(standing, os.W_OK):
        raise UserError(f"cannot write {folder}: {standing} may not be written to: choose another --out")
    found = sorted(_contents(folder))
    if found and not holds_run(folder):
        raise UserError(f"{folder} holds a {found[0].name} that no run wrote: choose another --out")
    if found and not overwrite:
        raise UserError(
            f"{folder} holds a run already: --resume goes on with it, --overwrite starts anew in its place, --out DIR "
            f"starts another"
        )


def start_run(
    folder: Path, config: str, tokenizer: str | None, overwrite: bool = False, template: StoredTemplate | None = None
) -> None:
    """Makes the folder with its `config.toml`, `tokenizer.json` and the chat template's files, if it has one.

    `overwrite` removes the files of another run in the folder, and no other files.

    Raises UserError where the folder is not free or cannot be written to.
    """
    check_free(folder, overwrite)
    make_dir(folder)
    write_text_atomic(folder / PROBE, "")  # where nothing can be written, nothing is removed
    for path in sorted(_contents(folder), key=lambda path: path.name == CONFIG):  # without it, it is no run: last
        _remove(path)
    (folder / PROBE).unlink()
    beside = {} if tokenizer is None else {TOKENIZER: tokenizer}
    beside |= template_files(template) if template else {}
    try:
        for name, text in beside.items():
            write_text_atomic(folder / name, text)
        write_text_atomic(folder / CONFIG, config)
    except UserError:
        for name in beside:
            (folder / name).unlink(missing_ok=True)  # nothing half-written
        raise


def reopen_run(folder: Path, config: str) -> None:
    """Prepares a folder to resume in: removes the unfinished files of a killed run, and writes the settings."""
    for path in folder.glob(".step_*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.tmp"):  # of files.write_atomic
        path.unlink(missing_ok=True)
    if (folder / CONFIG).read_bytes() != config.encode():
        write_text_atomic(folder / CONFIG, config)


def check_space(folder: Path, model: Model) -> None:
    """Raises UserError where the folder's disk has no room for one checkpoint of the model."""
    needed = 3 * model.parameters.flat.nbytes
    try:
        free = shutil.disk_usage(_standing(folder)).free
    except OSError as error:
        raise cannot_write(folder, error) from error
    if free < needed:
        raise UserError(
            f"{folder} is on a disk with {amount(free, 'B')} free, and a checkpoint takes {amount(needed, 'B')}: free "
            f"some space, or choose another --out"
        )


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))


def _is_ours(config: Path) -> bool:
    try:
        with open(config, "rb") as file:
            return file.read(len(HEADER)) == HEADER.encode()
    except OSError:
        return False


def _contents(folder: Path) -> Iterator[Path]:
    """Yields the files in the folder that a run has written or would overwrite."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in (CONFIG, MAIN_LOG, METRICS, *BESIDE) or re.fullmatch(r"step_\d{8,}", path.name):
            yield path


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            (path / DONE).unlink(missing_ok=True)  # first: a checkpoint that is half gone is none
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def save(folder: Path, step: int, model: Model, state: dict[str, Any], end_of_text: int | None = None) -> Path:
    """Writes a checkpoint of `model` after `step` steps; `state` is what `verify` gives back. Returns its folder.

    Whole or not at all: raises UserError, with nothing left of it, where the disk is full or the folder read-only.
    """
    target = step_folder(folder, step)
    workshop = folder / f".{target.name}.{os.getpid()}.partial"
    try:
        make_dir(workshop)
        huggingface.write_model(workshop, model.config, model.parameters.read(), end_of_text=end_of_text)
        with write_atomic(workshop / OPTIMIZER) as file:
            write(file, [TensorToWrite.of(name, np.asarray(model.arrays[name])) for name in ("m", "v")])
        checksums = {name: sha256_of(workshop / name) for name in CHECKED}
        text = json.dumps({"format": _FORMAT, "step": step, **state, "sha256": checksums})
        write_text_atomic(workshop / STATE, text + "\n")
        write_text_atomic(workshop / DONE, sha256_of(workshop / STATE) + "\n")
        if target.exists():  # written by a run that resumed from an earlier checkpoint, or half removed
            _remove(target)
        os.rename(workshop, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    sync_dir(folder)
    return target


def load(checkpoint: Path, model: Model) -> None:
    """Reads parameters and AdamW's moments of a checkpoint into `model`; raises UserError if their shape differs."""
    config = huggingface.read_config(checkpoint)
    if config != model.config:
        raise UserError(f"{checkpoint} holds a model of another shape ({config}) than this run's ({model.config})")
    optimizer = SafetensorsFile(checkpoint / OPTIMIZER)
    for name in ("m", "v"):
        entry = optimizer.entries.get(name)
        if entry is None or entry.dtype != "F32" or entry.shape != model.arrays[name].shape:
            raise UserError(f"{checkpoint / OPTIMIZER} holds no {name} for a model of this shape")
    with model.parameters.on_host() as parameters:
        huggingface.read_parameters(checkpoint, config, parameters)
    for name in ("m", "v"):
        model.arrays[name][...] = optimizer.tensor(name)


def verify(checkpoint: Path) -> dict[str, Any]:
    """Returns the saved state after checking the checksum of every file.

    Raises UserError naming the file that is missing, cut or altered.
    """
    advice = f"restore it, or remove {checkpoint} to go on from the checkpoint before"
    if damaged := run_folder.damaged_files(checkpoint):
        raise UserError(f"{checkpoint / damaged[0]} is damaged: its checksum is not that of what was saved; {advice}")
    try:
        state = json.loads((checkpoint / STATE).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {checkpoint / STATE}: {error.strerror or error}; {advice}") from error
    if state["format"] != _FORMAT:
        raise UserError(f"{checkpoint / STATE} is of format {state['format']}, this version reads {_FORMAT}")
    return state


def prune(folder: Path, keep: int, major_every: int = 0) -> None:
    """Removes all but the newest `keep` checkpoints (0: keeps all), and those of every `major_every`-th step."""
    complete = sorted(path for path in folder.glob("step_*") if path.name[5:].isdecimal() and (path / DONE).exists())
    for path in complete[:-keep] if keep else ():
        if not (major_every and int(path.name[5:]) % major_every == 0):
            _remove(path)
