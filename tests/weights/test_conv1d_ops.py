"""GPT-2's transposed matrices: exact, invertible, and where transformers' own chunks lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.errors import ShapeError
from nemoalign.weights.conv1d_ops import FuseTransposedQKV, Transpose
from nemoalign.weights.ops import FuseQKV
from tests.weights.test_ops import RAW_DTYPES, architecture, attention, numbered


@given(st.lists(st.integers(1, 5), min_size=1, max_size=2), st.sampled_from(RAW_DTYPES))
def test_a_transposed_matrix_comes_back_and_lies_row_by_row(shape, dtype):
    arch, whole = architecture(), numbered(shape, dtype)
    moved = Transpose().to_megatron([whole], arch)
    assert moved.flags.c_contiguous
    np.testing.assert_array_equal(moved, whole.T)
    (back,) = Transpose().to_hf(moved, arch, 0)
    np.testing.assert_array_equal(back, whole)
    assert Transpose().hf_shapes(moved.shape, arch, 0) == (whole.shape,)


@given(attention())
def test_the_packed_matrix_comes_back_and_equals_packing_its_three_chunks(case):
    arch, parts, _ = case
    whole = np.concatenate([part.T for part in parts], axis=-1)  # [hidden, q | k | v]
    packed = FuseTransposedQKV().to_megatron([whole], arch)
    np.testing.assert_array_equal(packed, FuseQKV().to_megatron(parts, arch))
    (back,) = FuseTransposedQKV().to_hf(packed, arch, 0)
    np.testing.assert_array_equal(back, whole)
    assert back.flags.c_contiguous
    assert FuseTransposedQKV().hf_shapes(packed.shape, arch, 0) == (whole.shape,)


def test_a_matrix_of_another_width_is_refused():
    with pytest.raises(ShapeError, match="should be 24"):
        FuseTransposedQKV().to_megatron([numbered((8, 23))], architecture())
