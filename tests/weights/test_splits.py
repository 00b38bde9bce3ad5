"""Cutting for tensor parallelism and joining again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.errors import ShapeError
from nemoalign.weights.splits import COLUMNS, GATED_ROWS, REPLICATED, ROWS, Split


@st.composite
def cut(draw):
    split = draw(st.sampled_from([REPLICATED, ROWS, COLUMNS, GATED_ROWS]))
    tp = draw(st.integers(1, 4))
    shape = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(2, 3)))]
    if split.dim is not None:
        shape[split.dim] *= tp * split.runs
    return split, tp, np.arange(np.prod(shape)).reshape(shape)


@given(cut())
def test_joining_shards_gives_the_whole(case):
    split, tp, whole = case
    np.testing.assert_array_equal(split.join(split.split(whole, tp)), whole)


@given(cut())
def test_shapes_of_shards_and_whole_agree_with_the_arrays(case):
    split, tp, whole = case
    shard = split.split(whole, tp)[0]
    assert split.shard_shape(whole.shape, tp) == shard.shape
    assert split.whole_shape(shard.shape, tp) == whole.shape


@given(cut())
def test_pieces_cover_every_element_once_unless_replicated(case):
    split, tp, whole = case
    seen = np.zeros(whole.shape, int)
    for rank in range(tp):
        for region in split.pieces(whole.shape, tp, rank):
            seen[region] += 1
    assert (seen == (tp if split.dim is None else 1)).all()


def test_each_half_of_a_gated_matrix_is_cut_on_its_own():
    whole = np.array(["g0", "g1", "u0", "u1"])
    first, second = GATED_ROWS.split(whole, 2)
    assert list(first) == ["g0", "u0"]
    assert list(second) == ["g1", "u1"]


def test_row_parallel_weights_are_cut_by_columns():
    first, second = COLUMNS.split(np.array([[1, 2], [3, 4]]), 2)
    assert first.tolist() == [[1], [3]]
    assert second.tolist() == [[2], [4]]


def test_a_dimension_that_does_not_divide_is_named():
    with pytest.raises(ShapeError, match=r"\(6, 4\) cannot be cut for --tp 4: dimension 0 is 6"):
        ROWS.split(np.zeros((6, 4)), 4)


def test_a_shard_without_equal_runs_is_refused():
    with pytest.raises(ShapeError, match="2 equal runs"):
        Split(0, runs=2).join([np.zeros((3, 2)), np.zeros((3, 2))])
