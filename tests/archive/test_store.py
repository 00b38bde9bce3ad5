from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.archive.store import (
    TensorInfo,
    as_bytes,
    bounds_of,
    checked_shape,
    checksum_array,
)
from nemoalign.errors import ShapeError, SourceError
from tests.archive.makers import SHAPES, raw_array

ends = st.none() | st.integers(-7, 7)


@given(st.data(), st.lists(st.integers(0, 5), max_size=4))
def test_bounds_select_what_numpy_selects(data: st.DataObject, shape: list[int]) -> None:
    parts = data.draw(st.lists(st.builds(slice, ends, ends), max_size=len(shape)))
    whole = np.arange(math.prod(shape)).reshape(shape)
    bounds = bounds_of(tuple(shape), tuple(parts))
    selected = whole[tuple(slice(start, stop) for start, stop in bounds)]
    assert np.array_equal(selected, whole[tuple(parts)])
    assert selected.shape == tuple(stop - start for start, stop in bounds)


def test_an_index_with_too_many_slices_is_refused() -> None:
    with pytest.raises(ShapeError, match="2 slices"):
        bounds_of((4,), (slice(0, 1), slice(0, 1)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_checksum_is_that_of_the_bytes(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = raw_array("float32", shape)
    with zipfile.ZipFile(tmp_path / "z", "w") as file:
        file.writestr("a", array.tobytes())
        assert checksum_array(array) == file.getinfo("a").CRC


def test_bytes_of_a_strided_array_are_in_row_major_order() -> None:
    array = raw_array("int16", (4, 6)).T[1:4]
    assert bytes(as_bytes(array)) == array.tobytes()


def test_bytes_of_a_contiguous_array_are_not_copied() -> None:
    array = np.zeros(4, np.float32)
    view = as_bytes(array)
    array[0] = 1
    assert bytes(view[:4]) == np.float32(1).tobytes()


def test_sizes_count_elements_and_bytes() -> None:
    info = TensorInfo((3, 4), "bfloat16")
    assert (info.size, info.size_bytes) == (12, 24)
    assert (TensorInfo((), "float32").size, TensorInfo((0, 9), "float32").size_bytes) == (1, 0)


@pytest.mark.parametrize(
    "lengths", [[-1], [True], [1.0], ["4"], [1] * 33, [1 << 40, 1 << 40], [0, 1 << 60]]
)
def test_an_impossible_shape_is_refused(lengths: list[object]) -> None:
    with pytest.raises(SourceError, match="the file"):
        checked_shape(lengths, "the file")


def test_an_ordinary_shape_is_kept() -> None:
    assert checked_shape([2, 0, 3], "the file") == (2, 0, 3)
