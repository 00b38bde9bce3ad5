"""Files that torch.save writes in the format of before 1.6, read as data."""

from __future__ import annotations

import contextlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.archive import legacy_read
from nemoalign.archive.dtypes import DTYPES
from nemoalign.archive.legacy_read import MAGIC, is_legacy, read_legacy
from nemoalign.archive.torch_file import TorchFile
from nemoalign.errors import ContentError, NemoAlignError, SourceError
from tests.archive.makers import bits, calling, raw_array, region_of, to_torch


def save(path: Path, value: object) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def opened(path: Path) -> TorchFile:
    return TorchFile(region_of(path), path.name)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (2, 0), (2, 3, 4)])
def test_we_read_a_tensor_torch_writes(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = raw_array(name, shape)
    file = opened(save(tmp_path / "t.pt", {"before": torch.ones(3), "x": to_torch(array, name)}))
    assert file.read("x").tobytes() == array.tobytes()
    assert file.read("before").tolist() == [1, 1, 1]


def test_views_parameters_and_nested_values_are_read(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module = torch.nn.Linear(3, 2)
    value = {
        "shared": base,
        "transposed": base.t(),
        "columns": base[:, 2:4],
        "parameter": torch.nn.Parameter(base[3]),
        "module": module.state_dict(),
        "extra": io.BytesIO(b"state"),
    }
    file = opened(save(tmp_path / "v.pt", value))
    for name in ("shared", "transposed", "columns", "parameter"):
        assert np.array_equal(file.read(name), value[name].detach().numpy())
        assert not file.read(name).flags.owndata
    assert file.read("module/weight").tobytes() == bits(module.weight.detach())
    assert {crc for _, crc in file.records.values()} == {0}


def test_a_long_value_is_read_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_read, "_FIRST_BYTES", 64)
    state = {f"layer.{n}.weight": torch.full((2,), n) for n in range(500)}
    file = opened(save(tmp_path / "t.pt", state))
    assert list(file.tensors) == list(state)
    assert file.read("layer.499.weight").tolist() == [499, 499]


def stream(*values: object, tail: bytes = b"") -> bytes:
    """Return pickles that follow each other, after the magic number."""
    parts = [v if isinstance(v, bytes) else pickle.dumps(v, 2) for v in values]
    return MAGIC + b"." + b"".join(parts) + tail


MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (stream(1001, MACHINE, {}, []), None, ""),
        (stream(1001, MACHINE, {}, [], tail=b"x"), SourceError, "after its last storage"),
        (stream(1001, MACHINE, {}, ["0"]), SourceError, "lists other storages"),
        (stream(1001, MACHINE, {}, {}), SourceError, "lists other storages"),
        (stream(1002, MACHINE, {}, []), SourceError, "known version"),
        (stream(1001, {**MACHINE, "little_endian": False}, {}, []), SourceError, "big-endian"),
        (stream(1001, [], {}, []), SourceError, "known version"),
        (stream(1001, MACHINE, {}), SourceError, "no valid pickle"),
        (stream(1001, MACHINE, calling("os", "system", "touch evil")), SourceError, r"os\.system"),
        (stream(1001, calling("os", "system", "touch evil")), SourceError, r"os\.system"),
        (stream(1001, MACHINE, {}, calling("os", "system", "a")), SourceError, r"os\.system"),
    ],
)
def test_streams_made_by_hand(
    content: bytes, error: type[Exception] | None, match: str, tmp_path: Path
) -> None:
    path = tmp_path / "old.ckpt"
    path.write_bytes(content)
    assert is_legacy(region_of(path))
    with pytest.raises(error, match=match) if error else contextlib.nullcontext():
        assert opened(path).tensors == {}


def test_a_length_that_is_not_the_storages_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pt", {"x": torch.zeros(4)})
    content = bytearray(path.read_bytes())
    assert content[-24:] == (4).to_bytes(8, "little") + bytes(16)
    content[-24:-16] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(SourceError, match="has 1152921504606846976 elements where 4"):
        read_legacy(region_of(path), "x")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = save(tmp_path / "t.pt", {"x": torch.zeros(40), "y": torch.ones(3)}).read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(SourceError, match="cut"):
            opened(tmp_path / "cut")


@settings(max_examples=150)
@given(st.data())
def test_damaged_files_give_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "t.pt"
    value = {"x": torch.zeros(4), "n": {"y": torch.ones(3, dtype=torch.bfloat16)}}
    content = bytearray(save(path, value).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(NemoAlignError, ContentError):
        file = opened(path)
        for name in file.tensors:
            with contextlib.suppress(NemoAlignError):
                file.read(name)
