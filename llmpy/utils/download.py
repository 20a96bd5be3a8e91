"""Downloads that resume where they stopped, are checked, and say what to do when they fail."""

import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from llmpy.errors import UserError
from llmpy.utils import progress_bar
from llmpy.utils.atomic_files import cannot_write, make_dir, sha256_of

TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 18
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError)


def download(
    url: str, path: Path, *, size: int | None = None, sha256: str | None = None, description: str | None = None
) -> Path:
    """Fetches `url` to `path` unless it is there already, and returns `path`.

    A partial download stays beside it as `NAME.part`; the next call continues it. `size` (bytes) and `sha256`
    (hex) are checked whether the file has just come or was put there by hand. UserError if it cannot be had or is not
    the file.
    """
    description = description or path.name
    if path.exists():
        if problem := _problem(path, size, sha256):
            raise UserError(f"{path} is not {description} from {url}: {problem}; delete it and run again")
        return path
    make_dir(path.parent)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part, size, description)
    except (*_NETWORK_ERRORS, ValueError) as error:
        raise UserError(
            f"cannot download {description} from {url} ({_reason(error)}): run the command again to go on with what "
            f"has come, or put the file at {path} yourself"
        ) from error
    except OSError as error:
        raise cannot_write(part, error) from error
    if problem := _problem(part, size, sha256):
        part.unlink()
        raise UserError(
            f"the download of {description} from {url} is damaged or has changed: {problem}; "
            f"run the command again, or put the right file at {path} yourself"
        )
    part.replace(path)
    return path


def _fetch(url: str, part: Path, size: int | None, description: str) -> None:
    """Fills `part` to the end. A connection that breaks is taken up again as long as each try brings new bytes."""
    with progress_bar.bar(f"downloading {description}", size, "B") as bar:
        bar.advance(_size(part))
        while True:
            before = _size(part)
            try:
                if _fetch_once(url, part, bar):
                    return
                reason: Exception = ConnectionError("the connection closed early")
            except urllib.error.HTTPError:
                raise
            except _NETWORK_ERRORS as error:
                reason = error
            if _size(part) <= before:
                raise reason


def _fetch_once(url: str, part: Path, bar: progress_bar.Bar) -> bool:
    """One request, from where `part` ends. True if the file is complete then, False if the connection closed early."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "llmpy", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Nothing lies beyond what we have: it is complete, or it belongs to another version of the file.
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink()
        bar.advance(-have)
        return _fetch_once(url, part, bar)
    with response:
        if have and response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the server sends all of it from the start
            bar.advance(-have)
            have = 0
        left = response.headers.get("Content-Length")
        expected = have + int(left) if left is not None else None
        if bar.total is None:
            bar.total = expected
        with open(part, "ab" if have else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                have += len(block)
                bar.advance(len(block))
    return expected is None or have >= expected


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _problem(path: Path, size: int | None, sha256: str | None) -> str | None:
    """Returns a few words about the damage of a complete file, or None if the file is good."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes instead of {size:,}"
    if sha256 is not None and (digest := sha256_of(path)) != sha256:
        return f"its SHA-256 is {digest[:16]}... instead of {sha256[:16]}..."
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT} seconds"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
