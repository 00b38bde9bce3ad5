import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.data.sampler import MISSING_ROW, GlobalSampler
from nemoalign.train.feed import Feed


class Rows:
    """Row ``i`` is the number ``i``."""

    def __init__(self, count: int) -> None:
        self.count = count

    def of_batch(self, batch):
        return self.__getitem__

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return int(index)

    def place(self, index: int) -> str:
        return f"row {index}"

    def length(self, index: int) -> int:
        return 3 + index % 5


def _feeds(total, gbs, dp, mbs, capacity=None, **order) -> list[Feed]:
    sampler = GlobalSampler(total, gbs, **order)
    return [Feed(Rows(total), sampler, list, rank, dp, mbs, capacity) for rank in range(dp)]


@given(
    st.integers(0, 5),
    st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4)]),
    st.sampled_from([None, 7, 16]),
)
def test_ranks_share_one_global_batch_whatever_their_number(step, shape, capacity) -> None:
    dp, mbs = shape
    whole = _feeds(21, 4, 1, 1)[0].step(step * 4)
    shares = [feed.step(step * 4) for feed in _feeds(21, 4, dp, mbs, capacity)]
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for part in share for row in part if row != MISSING_ROW]
    assert sorted(rows) == sorted(row for micro_batch in whole for row in micro_batch)


def test_validation_sees_every_row_once_and_ranks_stay_in_step() -> None:
    feeds = _feeds(10, 4, 2, 1, shuffle=False, drop_last=False)
    seen = [list(feed.once()) for feed in feeds]
    assert [len(batch) for batch in seen[0]] == [len(batch) for batch in seen[1]] == [2, 2, 1]
    rows = [row for rank in seen for batch in rank for micro_batch in batch for row in micro_batch]
    assert sorted(row for row in rows if row != MISSING_ROW) == list(np.arange(10))


def test_packs_hold_whole_rows_and_say_where_they_came_from() -> None:
    (feed,) = _feeds(8, 8, 1, 1, 14)
    packs = feed.step(0)
    assert all(sum(feed.rows.length(row) for row in pack) <= 14 for pack in packs)
    assert feed.places(0, [1]) == [f"row {row}" for row in packs[1]]


@given(st.integers(1, 5), st.sampled_from([None, 14]))
def test_groups_of_micro_batches_are_filled_up_without_rows(total, capacity) -> None:
    sampler = GlobalSampler(total, 5, shuffle=False, drop_last=False)
    feed = Feed(Rows(total), sampler, list, 0, 1, 1, capacity, multiple_of=2)
    (micro_batches,) = feed.once()
    assert len(micro_batches) % 2 == 0
    rows = [row for micro_batch in micro_batches for row in micro_batch if row != MISSING_ROW]
    assert sorted(rows) == list(range(total))
