"""Showing that kernels are being compiled, which takes seconds the first time on a machine and is kept by Triton."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton import knobs

from llmpy.utils import progress_bar


@contextmanager
def shown() -> Iterator[None]:
    """A bar on stderr that counts the kernels compiled within the block; nothing where all are kept already."""
    with progress_bar.bar("compiling the kernels, once on this machine", unit="kernels") as bar:

        def heard(*, cache_hit: bool, **about: Any) -> None:
            if not cache_hit:
                bar.advance()

        before, knobs.compilation.listener = knobs.compilation.listener, heard
        try:
            yield
        finally:
            knobs.compilation.listener = before
