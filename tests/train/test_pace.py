"""Which rank the others wait for."""

import pytest

from nemoalign.train.pace import WINDOW, Pace, find_slow


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([1.0], {}),
        ([1.0, 1.29], {}),
        ([1.0, 1.5], {1: 1.5}),
        ([2.0, 1.0], {0: 2.0}),
        ([1.0, 1.1, 0.9, 1.4], {3: 1.4}),
        ([1.0, 1.0, 3.0, 3.0], {2: 3.0, 3: 3.0}),
        ([3.0, 3.0, 3.0, 1.0], {}),
        ([0.0, 0.0], {}),
        ([0.0, 0.5], {}),
    ],
)
def test_slow_is_what_takes_longer_than_the_ranks_usually_do(seconds, slow):
    assert find_slow(dict(enumerate(seconds))) == pytest.approx(slow)


def pace_of(*ranks_seconds) -> tuple[Pace, list[str]]:
    """Return the book after steps in which the ranks took these seconds, and what it warned of."""
    pace = Pace(0, [f"host{rank}" for rank in range(len(ranks_seconds[0]))])
    said = []
    for step, seconds in enumerate(ranks_seconds):
        pace.take([number for own in seconds for number in (own, 1.0 + step)])
        said += pace.warnings()
    return pace, said


def test_a_slow_rank_is_named_with_its_host_once_until_it_recovers():
    slow, even = [[1.0, 2.0, 1.0]] * WINDOW, [[1.0, 1.0, 1.0]] * WINDOW
    _, said = pace_of(*slow, *slow, *even, *slow)
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].startswith(
        "rank 1 on host1 is slow: 2 s a step, 2.0 times the median of 3 ranks"
    )


def test_a_few_slow_steps_are_no_straggler():
    assert pace_of(*[[1.0, 9.0]] * (WINDOW // 2 - 1), *[[1.0, 1.0]] * (WINDOW // 2 + 1))[1] == []


def test_one_rank_waits_for_nobody():
    assert pace_of(*[[float(step)] for step in range(2 * WINDOW)])[1] == []


def test_the_sum_of_what_ranks_tell_is_what_each_of_them_told():
    hosts = ["a", "b"]
    first, second = Pace(0, hosts), Pace(1, hosts)
    summed = [x + y for x, y in zip(first.told(1.5, 4.0), second.told(3.0, 2.0), strict=True)]
    first.take(summed)
    first.take([0.0, 5.0, 0.0, 3.0], is_step=False)
    assert first.table() == [
        {"rank": 0, "host": "a", "seconds_per_step": 1.5, "times_median": 1.0, "peak_memory_gib": 5.0},
        {"rank": 1, "host": "b", "seconds_per_step": 3.0, "times_median": 2.0, "peak_memory_gib": 3.0},
    ]  # fmt: skip
