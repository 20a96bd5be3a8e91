"""Pieces of memory and what is given out of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")
from llmpy.kernels.cuda.runtime.arena import ALIGNMENT, Arena


class System:
    """Gives pieces one after the other, a gap between them, and remembers each."""

    def __init__(self) -> None:
        self.pieces = []

    def allocate(self, size):
        start = self.pieces[-1][0] + self.pieces[-1][1] + 10 * ALIGNMENT if self.pieces else 7 * ALIGNMENT
        self.pieces.append((start, size))
        return start, f"piece {len(self.pieces)}"


@given(st.lists(st.integers(0, 3000), max_size=40))
def test_nothing_overlaps_and_all_lies_in_the_piece_that_is_kept(sizes):
    system = System()
    arena, end = Arena(system.allocate, piece=4096), {}
    for size in sizes:
        address, keeper = arena.take(size)
        start, length = system.pieces[int(keeper.split()[1]) - 1]
        assert address % ALIGNMENT == 0
        assert start <= address and address + size <= start + length  # noqa: PT018
        assert address >= end.get(keeper, 0)
        end[keeper] = address + max(size, 1)


def test_small_arrays_share_a_piece_and_large_ones_have_their_own():
    system = System()
    arena = Arena(system.allocate, piece=4096)
    keepers = [arena.take(size)[1] for size in (1, 1000, 2049, 1024, 256, 2048)]
    assert keepers == ["piece 1", "piece 1", "piece 2", "piece 1", "piece 1", "piece 3"]
    assert [size for _, size in system.pieces] == [4096, 2304, 4096]
