from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from nemoalign.archive import zip_write
from nemoalign.archive.regions import Region
from nemoalign.archive.torch_write import write_tensor
from nemoalign.archive.zip_read import read_zip
from nemoalign.archive.zip_write import ALIGNMENT, ZipStream, write_blocks
from tests.archive.makers import bits, raw_array

ENTRIES = {"data.pkl": b"pickle", "data/0": bytes(range(256)) * 5, "data/1": b"", "version": b"3\n"}


def write_example(buffer: io.BytesIO) -> int:
    stream = ZipStream(buffer.write)
    for name, data in ENTRIES.items():
        assert stream.add(name, data) == zlib.crc32(data)
        assert stream.position == buffer.tell()
    return stream.close()


def test_python_reads_every_entry_and_its_checksum() -> None:
    buffer = io.BytesIO()
    assert write_example(buffer) == len(buffer.getvalue())
    with zipfile.ZipFile(buffer) as file:
        assert {name: file.read(f"archive/{name}") for name in ENTRIES} == ENTRIES
        assert file.testzip() is None


def data_offsets(buffer: io.BytesIO, path: Path) -> list[int]:
    path.write_bytes(buffer.getvalue())
    index = read_zip(Region(path, 0, path.stat().st_size), "z")
    return [index.entry(name).offset for name in index.entries]


def test_data_begins_at_multiples_of_64(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    write_example(buffer)
    assert {offset % ALIGNMENT for offset in data_offsets(buffer, tmp_path / "z")} == {0}


@pytest.mark.parametrize("large", [0, 1, 10, 300, 1000])
def test_large_entries_and_far_offsets_take_zip64_fields(
    large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered, because four gigabytes are too much for a test."""
    monkeypatch.setattr(zip_write, "LARGE", large)
    array = raw_array("float32", (30, 4))
    path = tmp_path / "w.pt"
    with path.open("wb") as file:
        write_tensor(file.write, array, "float32")
    assert b"\xff\xff\xff\xff\xff\xff\xff\xff" in path.read_bytes() or large
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.read("archive/data/0") == array.tobytes()
    assert bits(torch.load(path, weights_only=True, mmap=True)) == array.tobytes()
    found = read_zip(Region(path, 0, path.stat().st_size), "w.pt").entry("data/0")
    assert found.map().tobytes() == array.tobytes()


@pytest.mark.parametrize(("parallel", "lengths"), [(37, [10, 10, 10, 7]), (38, [37])])
def test_blocks_are_written_in_order_with_one_checksum(
    parallel: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_write, "BLOCK_BYTES", 10)
    monkeypatch.setattr(zip_write, "PARALLEL_BYTES", parallel)
    blocks: list[bytes] = []
    data = bytes(range(37))
    crc = write_blocks(lambda block: blocks.append(bytes(block)), memoryview(data))
    assert b"".join(blocks) == data
    assert crc == zlib.crc32(data)
    assert [len(block) for block in blocks] == lengths


def test_the_checksum_depends_on_every_entry() -> None:
    sums = set()
    for content in (b"a", b"b"):
        for name in ("x", "y"):
            stream = ZipStream(io.BytesIO().write)
            stream.add(name, content)
            sums.add(stream.checksum)
    assert len(sums) == 4


def test_torch_reads_more_data_than_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_write, "BLOCK_BYTES", 100)
    monkeypatch.setattr(zip_write, "PARALLEL_BYTES", 1000)
    buffer = io.BytesIO()
    array = raw_array("int32", (9, 100))
    write_tensor(buffer.write, array, "int32")
    buffer.seek(0)
    assert bits(torch.load(buffer, weights_only=True)) == array.tobytes()
