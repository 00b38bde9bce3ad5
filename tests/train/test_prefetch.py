import threading

import pytest

from nemoalign.data.sampler import GlobalSampler
from nemoalign.errors import DataError
from nemoalign.train.feed import Feed
from nemoalign.train.prefetch import PrefetchingFeed


class Rows:
    """Row ``i`` is the number ``i`` and the thread that read it; one row may be bad."""

    def __init__(self, count: int, bad: int = -1) -> None:
        self.count, self.bad = count, bad
        self.threads: dict[int, str] = {}

    def of_batch(self, batch):
        return self.__getitem__

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        if index == self.bad:
            raise DataError(f"line {index}")
        self.threads[int(index)] = threading.current_thread().name
        return int(index)

    def place(self, index: int) -> str:
        return f"line {index}"

    def length(self, index: int) -> int:
        return 1


def feeds(rows: Rows) -> tuple[Feed, PrefetchingFeed]:
    order = (GlobalSampler(len(rows), 4, shuffle=True), list, 0, 1, 2)
    return Feed(Rows(len(rows)), *order), PrefetchingFeed(rows, *order)


def test_every_step_gets_what_it_would_get_without():
    rows = Rows(22)
    plain, ahead = feeds(rows)
    for consumed in [0, 4, 8, 16, 20, 24, 4]:
        assert ahead.step(consumed) == plain.step(consumed)
        assert ahead.places(consumed, [0, 1]) == plain.places(consumed, [0, 1])


def test_the_rows_of_the_next_step_are_read_by_another_thread():
    rows = Rows(22)
    _, ahead = feeds(rows)
    ahead.step(0)
    second = [row for batch in ahead.step(4) for row in batch]
    assert {rows.threads[row].split("_")[0] for row in second} == {"prefetch"}


def test_a_bad_row_ends_the_step_that_uses_it_and_none_before():
    plain, _ = feeds(Rows(22))
    third = [row for batch in plain.step(8) for row in batch]
    _, ahead = feeds(Rows(22, bad=third[0]))
    ahead.step(0)
    ahead.step(4)
    with pytest.raises(DataError, match=f"line {third[0]}"):
        ahead.step(8)
