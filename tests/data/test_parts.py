"""Parts of a file: disjoint, covering, and nothing but rows and seed decides them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.data.files import open_rows
from nemoalign.data.parts import Part, PartOfFile
from nemoalign.errors import DataError
from tests.data.tiny import write_jsonl

SHARES = st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any)


@given(SHARES, st.integers(1, 500), st.integers(0, 3))
def test_every_row_is_in_exactly_one_part_and_neighbours_in_the_same(shares, count, seed) -> None:
    ends = np.cumsum([0, *shares]) / sum(shares)
    parts = [Part("x", a, b, seed).rows(count) for a, b in itertools.pairwise(ends)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - count * share / sum(shares)) <= 3
        assert (np.diff(part) > 0).all()
        assert {row ^ 1 for row in part.tolist() if row ^ 1 < count} <= set(part.tolist())


def test_another_seed_is_another_split_and_the_same_one_the_same() -> None:
    first, again, other = (Part("x", 0, 0.5, seed).rows(100).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_rows_keep_their_place_in_the_file(tmp_path) -> None:
    file = open_rows(write_jsonl(tmp_path / "rows.jsonl", [{"n": n} for n in range(20)]))
    part = PartOfFile(file, Part("train", 0.2, 0.6, 7))
    assert len(part) == 8
    for row in range(8):
        assert part.where(row) == f"rows.jsonl line {part.record(row)['n'] + 1}"
    assert part.size_bytes == round(file.size_bytes * 8 / 20)
    with pytest.raises(DataError, match="leaves none for test"):
        PartOfFile(file, Part("test", 1.0, 1.0, 7))
