from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.archive.pages import Pages

CONTENT = np.random.default_rng(0).bytes(1003)


class Slow:
    """Bytes that count how often they are asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def fetch(self, offset: int, size: int) -> bytes:
        assert offset + size <= len(CONTENT)
        self.calls.append((offset, size))
        return CONTENT[offset : offset + size]


@given(st.lists(st.tuples(st.integers(0, 1003), st.integers(0, 1003)), max_size=20))
def test_any_reads_give_the_bytes(reads: list[tuple[int, int]]) -> None:
    slow = Slow()
    pages = Pages(slow.fetch, len(CONTENT), page=10, keep=7)
    for offset, size in reads:
        size = min(size, len(CONTENT) - offset)
        assert pages.read(offset, size) == CONTENT[offset : offset + size]


def test_neighbours_cost_one_fetch_and_old_pages_are_forgotten() -> None:
    slow = Slow()
    pages = Pages(slow.fetch, len(CONTENT), page=100, keep=2)
    for offset in range(0, 200, 20):
        pages.read(offset, 20)
    assert slow.calls == [(0, 100), (100, 100)]
    pages.read(1000, 3)
    pages.read(150, 1)
    assert slow.calls[2:] == [(1000, 3)]
    pages.read(0, 1)
    assert slow.calls[3:] == [(0, 100)]


def test_what_is_long_is_fetched_as_it_is() -> None:
    slow = Slow()
    pages = Pages(slow.fetch, len(CONTENT), page=100, keep=2)
    assert pages.read(50, 300) == CONTENT[50:350]
    assert slow.calls == [(50, 300)]
    pages.read(50, 100)
    assert slow.calls[1:] == [(0, 200)]
