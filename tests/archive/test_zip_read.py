from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.archive.regions import Region
from nemoalign.archive.zip_read import read_zip
from nemoalign.errors import NemoAlignError, SourceError
from tests.archive.makers import region_of, save


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("zip") / "w.pt", {"a": torch.arange(9), "b": torch.ones(2)})


def test_entries_are_those_python_finds(torch_file: Path) -> None:
    index = read_zip(region_of(torch_file), "w.pt")
    with zipfile.ZipFile(torch_file) as file:
        assert [f"w/{name}" for name in index.entries] == file.namelist()
        for name in index.entries:
            assert index.entry(name).read(1000) == file.read(f"w/{name}")


def test_a_zip_inside_a_larger_file_is_found_by_its_region(
    torch_file: Path, tmp_path: Path
) -> None:
    inner = torch_file.read_bytes()
    path = tmp_path / "outer"
    path.write_bytes(b"x" * 777 + inner + b"PK\x05\x06" * 20)
    index = read_zip(Region(path, 777, len(inner)), "inner")
    assert index.entry("byteorder").read(9) == b"little"


def test_a_zip_with_zip64_fields_is_read(tmp_path: Path) -> None:
    path = tmp_path / "z"
    with zipfile.ZipFile(path, "w") as file, file.open("top/data", "w", force_zip64=True) as entry:
        entry.write(b"12345")
    assert read_zip(region_of(path), "z").entry("data").read(9) == b"12345"


def test_a_comment_at_the_end_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "z"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("top/data", b"12345")
        file.comment = b"c" * 60_000
    assert read_zip(region_of(path), "z").entry("data").read(9) == b"12345"


def test_a_compressed_entry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "z"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("top/data", bytes(1000))
    with pytest.raises(SourceError, match="compressed"):
        read_zip(region_of(path), "z")


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "z"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("top/data", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("top/data", b"2")
    with pytest.raises(SourceError, match="twice"):
        read_zip(region_of(path), "z")


def test_a_missing_entry_is_named(torch_file: Path) -> None:
    with pytest.raises(SourceError, match=r"w\.pt has no record 'data/9'"):
        read_zip(region_of(torch_file), "w.pt").entry("data/9")


def test_a_file_cut_anywhere_is_refused(torch_file: Path, tmp_path: Path) -> None:
    data = torch_file.read_bytes()
    path = tmp_path / "cut"
    for length in range(0, len(data), 23):
        path.write_bytes(data[:length])
        with pytest.raises(SourceError, match="cut"):
            read_zip(region_of(path), "cut")


@settings(max_examples=40)
@given(st.data())
def test_flipped_bytes_give_entries_inside_the_file_or_our_error(
    torch_file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(torch_file.read_bytes())
    start = content.index(b"PK\x01\x02")  # the directory and the end records
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(start, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / "f"
    path.write_bytes(content)
    with contextlib.suppress(NemoAlignError):
        index = read_zip(region_of(path), "f")
        for name in index.entries:
            with contextlib.suppress(NemoAlignError):
                entry = index.entry(name)
                assert entry.offset + entry.size <= len(content)


def test_an_empty_zip_has_no_entries(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w"):
        pass
    path = tmp_path / "z"
    path.write_bytes(buffer.getvalue())
    assert read_zip(region_of(path), "z").entries == {}
