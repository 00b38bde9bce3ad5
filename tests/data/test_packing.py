from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nemoalign.data.packing import first_fit_decreasing, measure_waste, share_packs

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
CAPACITY = st.integers(40, 200)
RANKS = st.sampled_from([1, 2, 3, 4, 8])


def rows_of(shares):
    return [row for packs in shares for pack in packs for row in pack]


@given(LENGTHS, CAPACITY, RANKS)
def test_every_row_is_computed_once_whatever_the_ranks(lengths, capacity, ranks):
    assert sorted(rows_of(share_packs(lengths, capacity, ranks))) == list(range(len(lengths)))


@given(LENGTHS, CAPACITY, RANKS)
def test_no_pack_is_too_long_unless_it_is_one_long_row(lengths, capacity, ranks):
    for packs in share_packs(lengths, capacity, ranks):
        for pack in packs:
            assert len(pack) <= 1 or sum(lengths[row] for row in pack) <= capacity


@given(LENGTHS, CAPACITY, RANKS)
def test_ranks_stay_in_step_and_packs_are_few(lengths, capacity, ranks):
    counts = {len(packs) for packs in share_packs(lengths, capacity, ranks)}
    assert len(counts) == 1
    fewest = -(-sum(min(length, capacity) for length in lengths) // capacity)
    # First fit decreasing needs at most 11/9 of the fewest packs and 2/3 more; ranks round up.
    assert counts.pop() * ranks < 11 / 9 * max(fewest, len(fit(lengths, capacity))) + 1 + ranks


def fit(lengths, capacity):
    """Next fit: what nobody should be worse than."""
    packs, size = [[]], 0
    for length in lengths:
        if size and size + length > capacity:
            packs.append([])
            size = 0
        packs[-1].append(length)
        size += length
    return packs


@given(LENGTHS, CAPACITY, RANKS)
def test_the_same_lengths_give_the_same_packs(lengths, capacity, ranks):
    assert share_packs(lengths, capacity, ranks) == share_packs(tuple(lengths), capacity, ranks)


@given(st.lists(st.integers(10, 20), min_size=16, max_size=64), st.sampled_from([2, 4]))
@example([10] * 21 + [11] * 10 + [20] * 30, 2)
def test_the_work_of_two_ranks_differs_by_less_than_a_pack(lengths, ranks):
    work = [
        sum(lengths[row] for pack in packs for row in pack)
        for packs in share_packs(lengths, 100, ranks)
    ]
    assert max(work) - min(work) < 100


def test_few_rows_are_shared_out_although_one_pack_could_hold_them():
    assert share_packs([30, 30, 10, 10], 100, 2) == [[[0, 2]], [[1, 3]]]


def test_a_rank_without_rows_gets_a_pack_without_rows():
    assert share_packs([7], 100, 3) == [[[0]], [[]], [[]]]


def test_neighbours_in_a_pack_have_about_the_same_length():
    (packs,) = share_packs([5, 9, 5, 9], 100, 1)
    assert packs == [[1, 3, 0, 2]]


def test_first_fit_decreasing_is_the_textbooks():
    lengths = [4, 8, 1, 4, 2, 1]
    packed = first_fit_decreasing(lengths, 10)
    assert [[lengths[row] for row in pack] for pack in packed] == [[8, 2], [4, 4, 1, 1]]
    assert Counter(map(len, first_fit_decreasing([30, 5], 10))) == {1: 2}


def test_waste_is_what_is_computed_for_nothing():
    waste = measure_waste([[10, 6, 4, 4], [9, 9, 1, 1]], 20, 1, 2)
    assert waste.packs_per_step == pytest.approx(1.5)
    assert waste.padding == 0
    # Pairs by length: 10+10 and 4+4, 9+9 and 1+1 positions for 44 tokens.
    assert waste.padding_without == pytest.approx(1 - 44 / 48)
    # Three ranks, three rows: two ranks of the second batch compute one token for nothing.
    assert measure_waste([[3]], 20, 3, 1).padding == pytest.approx(2 / 5)
