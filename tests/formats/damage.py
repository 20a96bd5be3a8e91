"""Files as they come back from a bad disk or a bad line: cut, flipped, or something else altogether."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import strategies as st

from llmpy.errors import UserError

T = TypeVar("T")


def damaged(good: bytes, header: int) -> st.SearchStrategy[bytes]:
    """Mutations of the bytes of a good file; most of them fall into its first `header` bytes, where the meaning is."""

    def flip(places: list[tuple[int, int]]) -> bytes:
        data = bytearray(good)
        for at, bit in places:
            data[at % len(data)] ^= 1 << bit
        return bytes(data)

    def overwrite(at: int, word: bytes) -> bytes:
        return (good[:at] + word + good[at + len(word) :])[: len(good)]

    anywhere = st.one_of(st.integers(0, header - 1), st.integers(0, len(good) - 1))
    return st.one_of(
        st.integers(0, len(good) - 1).map(lambda n: good[:n]),
        st.binary(min_size=1, max_size=64).map(lambda tail: good + tail),
        st.lists(st.tuples(anywhere, st.integers(0, 7)), min_size=1, max_size=4).map(flip),
        st.builds(overwrite, anywhere, st.binary(min_size=1, max_size=12)),
        st.binary(max_size=200),
    )


def read_or_refuse(read: Callable[[Path], T], path: Path, data: bytes) -> T | None:
    """What is read of the file, or None where it is refused in one line; any other exception is a failure."""
    path.write_bytes(data)
    try:
        return read(path)
    except UserError as error:
        return check_one_line(str(error))


def check_one_line(message: str) -> None:
    assert message
    assert "\n" not in message
