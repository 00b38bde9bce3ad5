from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.archive.dtypes import DTYPES
from nemoalign.archive.files import open_container
from nemoalign.archive.safetensors import SafetensorsStore
from nemoalign.archive.store import TensorInfo
from nemoalign.errors import ContentError, NemoAlignError, SourceError
from tests.archive.makers import SHAPES, raw_array, to_torch


def store_of(folder: Path) -> SafetensorsStore:
    return SafetensorsStore(open_container(folder))


@pytest.mark.parametrize("name", DTYPES)
def test_files_of_the_formats_own_library_are_read(name: str, tmp_path: Path) -> None:
    arrays = {f"t{number}": raw_array(name, shape) for number, shape in enumerate(SHAPES)}
    tensors = {key: to_torch(array, name) for key, array in arrays.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    store = store_of(tmp_path)
    assert dict(store.tensors) == {k: TensorInfo(a.shape, name) for k, a in arrays.items()}
    for key, array in arrays.items():
        assert store.read(key).tobytes() == array.tobytes()


def test_slices_are_views_of_the_file(tmp_path: Path) -> None:
    tensor = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    safetensors.torch.save_file({"a": tensor}, tmp_path / "model.safetensors")
    found = store_of(tmp_path).read("a", (slice(1, 3), slice(2, 7)))
    assert np.array_equal(found, tensor.numpy()[1:3, 2:7])
    assert not found.flags.owndata
    assert not found.flags.writeable


def save_shards(folder: Path) -> dict[str, torch.Tensor]:
    first, second = {"a": torch.ones(3)}, {"b": torch.zeros(2, 2), "c": torch.ones(1)}
    safetensors.torch.save_file(first, folder / "model-00001-of-00002.safetensors")
    safetensors.torch.save_file(second, folder / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    write_index(folder, weight_map)
    return first | second


def write_index(folder: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    expected = save_shards(tmp_path)
    store = store_of(tmp_path)
    assert set(store.tensors) == set(expected)
    for name, tensor in expected.items():
        assert np.array_equal(store.read(name), tensor.numpy())


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-00001-of-00002.safetensors"}, None),
        ({"b": "model-00002-of-00002.safetensors"}, "holds 'c'"),
        ({"a": "model-00001-of-00002.safetensors", "z": "model-00001-of-00002.safetensors"}, "'z'"),
        ({"a": "../secret.safetensors"}, r"no \.\./secret"),
        ({"a": "missing.safetensors"}, r"no missing\.safetensors"),
        ({"a": 5}, "no 5"),
        (["a"], 'no "weight_map"'),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(
    weight_map: Any, message: str | None, tmp_path: Path
) -> None:
    save_shards(tmp_path)
    write_index(tmp_path, weight_map)
    if message is None:
        assert list(store_of(tmp_path).tensors) == ["a"]
    else:
        with pytest.raises((SourceError, ContentError), match=message):
            store_of(tmp_path)


def write_file(folder: Path, header: object, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + data)
    return folder


def entry(kind: str, shape: list[Any], start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "offsets behind the end": {"a": entry("F32", [4], 0, 16)},
    "a gap": {"a": entry("F32", [1], 4, 8)},
    "an overlap": {"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)},
    "a negative offset": {"a": entry("F32", [2], -8, 0), "b": entry("F32", [2], 0, 8)},
    "too few bytes for the shape": {"a": entry("F32", [3], 0, 8)},
    "data that nobody describes": {"a": entry("F32", [1], 0, 4)},
    "an absurd shape": {"a": entry("F32", [1 << 40, 1 << 40], 0, 8)},
    "a negative shape": {"a": entry("F32", [-2, -1], 0, 8)},
    "a shape of texts": {"a": entry("F32", ["2"], 0, 8)},
    "offsets that are texts": {"a": entry("F32", [2], "0", "8")},
    "an unknown type": {"a": entry("C64", [1], 0, 8)},
    "an entry that is no object": {"a": 5},
    "a header that is no object": [1],
    "a header that is no JSON": b"{",
    "a name twice": b'{"a": {}, "a": {}}',
    "a header nested too deeply": b"[" * 100_000,
    "a header that is no text": b"\xff\xfe\xff",
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_header_that_contradicts_its_file_is_refused(header: object, tmp_path: Path) -> None:
    with pytest.raises((SourceError, ContentError), match="model"):
        store_of(write_file(tmp_path, header, bytes(8)))


@pytest.mark.parametrize("length", [100, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_not_read(length: int, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a header of"):
        store_of(write_file(tmp_path, {}, bytes(8), length))


@pytest.mark.parametrize("size", [0, 7, 8, 60, 100])
def test_a_file_cut_anywhere_is_refused(size: int, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(20)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        store_of(tmp_path)


def test_a_directory_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no model\.safetensors"):
        store_of(tmp_path)


@settings(max_examples=50)
@given(st.data())
def test_flipped_bytes_give_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    header = {"a": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [4], 24, 32)}
    path = write_file(folder, header, bytes(32)) / "model.safetensors"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(NemoAlignError):
        store = store_of(folder)
        for name, info in store.tensors.items():
            assert store.read(name).nbytes == info.size_bytes
