"""Files that are written whole or not at all, and the folder where downloads and prepared data are kept."""

import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llmpy.errors import UserError

_HINTS = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EISDIR: "a folder has this name: choose another one",
    errno.EEXIST: "a file has the name of the folder: choose another one",
    errno.ENOTDIR: "a file has the name of the folder: choose another one",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def cache_dir() -> Path:
    """Folder for files that can be rebuilt: $LLMPY_CACHE_DIR, else `llmpy` in the user's cache folder. Not created."""
    if chosen := os.environ.get("LLMPY_CACHE_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llmpy"


def cannot_write(path: Path, error: OSError) -> UserError:
    """The one line for a full disk, a read-only folder and their like."""
    hint = _HINTS.get(error.errno or 0)
    return UserError(f"cannot write {path}: {error.strerror or error}" + (f": {hint}" if hint else ""))


def make_dir(path: Path) -> Path:
    """Makes the folder and its parents where they are missing. UserError where that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


@contextmanager
def write_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for binary writing that appears under its name only once it is complete and on the disk.

    It is written under a temporary name in the same folder (made if missing), synced, and renamed over `path`. Whatever
    fails, inside the block or here, the old file stays and the temporary one goes. UserError where the disk is full,
    the folder is read-only, and so on.
    """
    path = Path(path)
    make_dir(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # An error that names another file comes from the block, not from our writing: it is not ours to explain.
        if error.filename is not None and Path(error.filename) != temporary:
            raise
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Makes a rename in the folder survive a power cut, on systems where a folder can be synced."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8 with the newlines it has, whole or not at all."""
    with write_atomic(path) as file:
        file.write(text.encode())


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
