"""What torch says of the files we write, and that their size is known before."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from nemoalign.archive import zip_write
from nemoalign.archive.dtypes import DTYPES
from nemoalign.archive.store import TensorInfo
from nemoalign.archive.torch_file import TorchFile
from nemoalign.archive.torch_write import (
    TorchWriter,
    torch_file_size,
    write_empty,
    write_record,
    write_tensor,
    write_torch_file,
)
from tests.archive.makers import SHAPES, bits, raw_array, region_of, to_torch


def opened(path: Path) -> TorchFile:
    return TorchFile(region_of(path), path.name)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_reads_a_tensor_we_write_and_we_read_it_back(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    array = raw_array(name, shape)
    path = tmp_path / "t.pt"
    with path.open("wb") as out:
        assert write_tensor(out.write, array, name) == out.tell()
    for mmap in (False, True):
        tensor = torch.load(path, weights_only=True, mmap=mmap)
        assert (tensor.dtype, tuple(tensor.shape)) == (getattr(torch, name), shape)
        assert bits(tensor) == array.tobytes()
    file = opened(path)
    assert file.read_ref(file.tree).tobytes() == array.tobytes()
    assert file.tensors == {"": TensorInfo(shape, name)}


def test_a_record_is_written_as_torch_writes_it(tmp_path: Path) -> None:
    array = raw_array("bfloat16", (3, 5))
    ours, theirs = io.BytesIO(), io.BytesIO()
    write_tensor(ours.write, array, "bfloat16")
    torch.save(to_torch(array, "bfloat16"), theirs)
    with zipfile.ZipFile(ours) as mine, zipfile.ZipFile(theirs) as torchs:
        assert mine.namelist() == torchs.namelist()
        for name in mine.namelist()[1:-1]:
            assert mine.read(name) == torchs.read(name)
        assert len(mine.read(mine.namelist()[-1])) == len(torchs.read(torchs.namelist()[-1]))


def test_the_checksum_of_a_record_is_that_of_its_data(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    size, crc = write_record(buffer.write, raw_array("float32", (7,)), "float32")
    assert size == buffer.tell()
    with zipfile.ZipFile(buffer) as file:
        assert crc == file.getinfo("archive/data/0").CRC


LAZY_SHAPES = {"model.a": (3, 4), "model.b": (), "model.c": (2, 0), "model.d": (9,)}


class Lazy(Mapping[str, tuple[np.ndarray, str]]):
    """Tensors that are made when they are asked for."""

    def __getitem__(self, name: str) -> tuple[np.ndarray, str]:
        return raw_array("float32", LAZY_SHAPES[name], seed=len(name)), "float32"

    def __iter__(self) -> Iterator[str]:
        return iter(LAZY_SHAPES)

    def __len__(self) -> int:
        return len(LAZY_SHAPES)


def test_torch_reads_a_state_dict_we_write(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    with path.open("wb") as out:
        assert write_torch_file(out.write, Lazy()) == out.tell()
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert type(loaded) is OrderedDict
        assert list(loaded) == list(LAZY_SHAPES)
        for name, (array, _) in Lazy().items():
            assert bits(loaded[name]) == array.tobytes()
    assert {n: opened(path).read(n).tobytes() for n in Lazy()} == {
        n: array.tobytes() for n, (array, _) in Lazy().items()
    }


def test_an_empty_dictionary_is_read_by_torch(tmp_path: Path) -> None:
    with (tmp_path / "c").open("wb") as out:
        assert write_empty(out.write) == out.tell()
    assert torch.load(tmp_path / "c", weights_only=True) == {}


INFOS = {name: TensorInfo(shape, "float32") for name, shape in LAZY_SHAPES.items()}


@pytest.mark.parametrize("large", [zip_write.LARGE, 30])
def test_the_size_of_a_file_is_known_before_it_is_written(large, monkeypatch) -> None:
    """Also where entries need the wide fields of zip64."""
    monkeypatch.setattr(zip_write, "LARGE", large)
    buffer = io.BytesIO()
    writer = TorchWriter(buffer.write, INFOS)
    for name, (array, _) in Lazy().items():
        writer.add(name, array)
    assert writer.close() == buffer.tell() == torch_file_size(INFOS)


@pytest.mark.parametrize(
    ("name", "shape"), [("model.b", (3, 4)), ("model.a", (4, 3)), ("model.x", (3, 4))]
)
def test_tensors_come_as_they_were_announced(name, shape) -> None:
    writer = TorchWriter(len, INFOS)
    with pytest.raises(AssertionError, match=r"announced|next"):
        writer.add(name, raw_array("float32", shape))
    with pytest.raises(AssertionError, match="given"):
        writer.close()
