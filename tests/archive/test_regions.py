from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.archive.regions import Region, map_strided, map_tensor, row_major_strides
from nemoalign.archive.store import TensorInfo
from nemoalign.errors import SourceError
from tests.archive.makers import SHAPES, raw_array

CONTENT = np.random.default_rng(3).bytes(20_000)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("regions") / "file"
    path.write_bytes(CONTENT)
    return path


@given(st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 20_000))
def test_mapped_bytes_are_the_files_bytes(file: Path, offset: int, start: int, size: int) -> None:
    region = Region(file, offset, len(CONTENT) - offset)
    if start + size > region.size:
        with pytest.raises(SourceError, match="truncated"):
            region.map(start, size)
    else:
        expected = CONTENT[offset + start : offset + start + size]
        assert region.map(start, size).tobytes() == expected == region.bytes(start, size)


def test_mapping_without_limits_is_the_whole_region(file: Path) -> None:
    assert Region(file, 7, 100).map().tobytes() == CONTENT[7:107]
    assert Region(file, 7, 100).map(90).tobytes() == CONTENT[97:107]


def test_a_mapping_is_read_only_and_ends_with_the_array(file: Path) -> None:
    array = map_tensor(Region(file, 0, 20_000), 5000, TensorInfo((10, 10), "float32"))[2:4]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert str(file) in Path("/proc/self/maps").read_text()
    del array
    gc.collect()
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_a_part_that_sticks_out_is_refused(file: Path) -> None:
    for start, size in [(-1, 2), (0, 11), (11, 0), (5, -1), (1 << 70, 1)]:
        with pytest.raises(SourceError, match="only 10"):
            Region(file, 0, 10).part(start, size)


def test_a_member_above_the_limit_is_refused(file: Path) -> None:
    assert Region(file, 0, 10).read(10) == CONTENT[:10]
    with pytest.raises(SourceError, match="at most 9"):
        Region(file, 0, 10).read(9)


def test_a_file_that_shrank_or_went_away_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1234")
    with pytest.raises(SourceError, match="shorter"):
        Region(path, 0, 5).map()
    path.unlink()
    with pytest.raises(SourceError, match="No such file"):
        Region(path, 0, 4).map()


@given(st.data(), st.sampled_from(SHAPES), st.integers(0, 9))
def test_a_mapped_slice_is_numpys_slice(
    file: Path, data: st.DataObject, shape: tuple[int, ...], start: int
) -> None:
    index = tuple(data.draw(st.builds(slice, st.integers(0, 3), st.integers(0, 4))) for _ in shape)
    size = int(np.prod(shape)) * 2
    expected = np.frombuffer(CONTENT[start : start + size], np.int16).reshape(shape)[index]
    found = map_tensor(Region(file, 0, 20_000), start, TensorInfo(shape, "int16"), index)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


def test_a_transposed_tensor_is_mapped_with_its_strides(file: Path) -> None:
    plain = np.frombuffer(CONTENT[:48], np.int32).reshape(3, 4)
    found = map_strided(Region(file, 0, 48), 0, TensorInfo((4, 3), "int32"), (1, 4), (slice(1, 3),))
    assert np.array_equal(found, plain.T[1:3])


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((3, 4), (4, 2)), ((13,), (1,)), ((1 << 20, 1 << 20), (0, 0)), ((2,), (1 << 60,))],
)
def test_a_tensor_larger_than_its_bytes_is_refused(
    file: Path, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with pytest.raises(SourceError, match="only 48"):
        map_strided(Region(file, 0, 48), 0, TensorInfo(shape, "int32"), strides)


@pytest.mark.parametrize("shape", [s for s in SHAPES if 0 not in s])
def test_strides_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    expected = tuple(step // 4 for step in raw_array("float32", shape).strides)
    assert row_major_strides(shape) == expected
