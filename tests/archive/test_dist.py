from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.archive.dist import DistStore, read_backend
from nemoalign.archive.dist_index import INDEX_NAME
from nemoalign.archive.dist_write import DATA_NAME, FORMAT
from nemoalign.archive.files import open_container
from nemoalign.errors import SourceError
from tests.archive.makers import FIXTURES, bits, raw_array, to_torch
from tests.archive.test_dist_index import good, write_index

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ARCHIVES = ["llama.nemo", "gpt_tp1_dist.nemo"]


@dataclass(repr=False)
class Genuine:
    """A store on the archive itself, and what torch loads from an unpacked copy."""

    store: DistStore
    expected: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=ARCHIVES)
def genuine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Genuine:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(FIXTURES / request.param) as tar:
        tar.extractall(folder, filter="data")
    weights = folder / "model_weights"
    metadata = dcp.FileSystemReader(weights).read_metadata()
    expected = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    dcp.load(expected, checkpoint_id=weights, no_dist=True)
    container = open_container(FIXTURES / request.param).under("model_weights")
    return Genuine(DistStore(container), expected)


def test_every_tensor_is_what_torch_loads(genuine: Genuine) -> None:
    store, expected = genuine.store, genuine.expected
    assert set(store.tensors) == set(expected)
    for name, tensor in expected.items():
        assert store.tensors[name].shape == tuple(tensor.shape)
        assert store.read(name).tobytes() == bits(tensor)


def test_every_layer_is_read_alone_and_without_a_copy(genuine: Genuine) -> None:
    store, expected = genuine.store, genuine.expected
    name = "model.decoder.layers.self_attention.linear_qkv.weight"
    for layer in range(store.tensors[name].shape[0]):
        found = store.read(name, (slice(layer, layer + 1),))
        assert np.array_equal(found, expected[name][layer : layer + 1].numpy())
        assert not found.flags.owndata
        assert not found.flags.writeable


@given(st.data())
def test_any_slice_is_numpys_slice(genuine: Genuine, data: st.DataObject) -> None:
    store, expected = genuine.store, genuine.expected
    name = data.draw(st.sampled_from(sorted(expected)))
    cut = st.builds(slice, st.none() | st.integers(0, 70), st.none() | st.integers(0, 140))
    index = tuple(data.draw(cut) for _ in range(data.draw(st.integers(0, expected[name].ndim))))
    found = store.read(name, index)
    assert np.array_equal(found, expected[name].numpy()[index])
    assert found.size == 0 or not found.flags.writeable


def test_entries_of_bytes_are_found_and_bounded(genuine: Genuine) -> None:
    store = genuine.store
    name = store.bytes_keys[0]
    assert name.endswith("_extra_state/shard_0_4")
    with torch.serialization.safe_globals([io.BytesIO]):
        saved = torch.load(io.BytesIO(store.read_bytes(name, 1 << 16)), weights_only=True)
    assert isinstance(saved[0], io.BytesIO)
    with pytest.raises(SourceError, match="at most 10"):
        store.read_bytes(name, 10)


def test_common_values_are_empty_in_an_archive(genuine: Genuine) -> None:
    assert genuine.store.common == {}


def test_chunks_are_the_layers_that_were_saved(genuine: Genuine) -> None:
    chunks = genuine.store.chunks("model.decoder.layers.self_attention.linear_proj.weight")
    assert chunks == [((n, 0, 0), (1, 64, 64)) for n in range(4)]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (4, 3, 2)])
def test_checkpoints_of_plain_torch_are_read(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    array = raw_array(name, shape)
    dcp.save({"model.x": to_torch(array, name)}, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "metadata.json").write_text(json.dumps(FORMAT))
    store = DistStore(open_container(tmp_path))
    assert store.tensors["model.x"].dtype == name
    assert store.read("model.x").tobytes() == array.tobytes()
    assert store.read("model.x").shape == shape


def forged(folder: Path, value: object, shape: tuple[int, ...]) -> DistStore:
    """Open a checkpoint whose only record holds ``value``, with an index that states ``shape``."""
    torch.save(value, folder / DATA_NAME)
    content = (folder / DATA_NAME).read_bytes()
    origin = (0,) * len(shape)
    places = [("t", origin, DATA_NAME, 0, len(content))]
    changes = {"shape": shape, "chunks": [(origin, shape)], "places": places, "bytes": []}
    write_index(folder, good() | changes)
    (folder / DATA_NAME).write_bytes(content)
    (folder / "metadata.json").write_text(json.dumps(FORMAT))
    return DistStore(open_container(folder))


def test_a_record_with_a_larger_storage_gives_only_its_view(tmp_path: Path) -> None:
    whole = torch.arange(4000, dtype=torch.float32).reshape(4, 1000)
    store = forged(tmp_path, whole[1:2, 10:16], (1, 6))
    assert (tmp_path / DATA_NAME).stat().st_size > 16_000
    assert store.read("t").tolist() == [[1010.0, 1011, 1012, 1013, 1014, 1015]]


def test_a_record_of_another_shape_than_the_index_says_is_refused(tmp_path: Path) -> None:
    store = forged(tmp_path, torch.ones(4, 3), (3, 4))
    with pytest.raises(SourceError, match=r"chunk 0 of t is float32 \[4, 3\], but .* \[3, 4\]"):
        store.read("t")


def test_a_record_of_another_type_than_the_index_says_is_refused(tmp_path: Path) -> None:
    store = forged(tmp_path, torch.ones(3, 4, dtype=torch.int32), (3, 4))
    with pytest.raises(SourceError, match=r"is int32 .* says float32"):
        store.read("t")


def test_a_record_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    store = forged(tmp_path, {"a": 1}, (3, 4))
    with pytest.raises(SourceError, match="is no tensor"):
        store.read("t")


def saved(folder: Path) -> Path:
    tensor = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    dcp.save({"t": tensor}, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps(FORMAT))
    return folder


def test_chunks_that_overlap_are_refused(tmp_path: Path) -> None:
    parts = good() | {"chunks": [((0, 0), (2, 6)), ((1, 0), (2, 6))]}
    parts["places"][1] = ("t", (1, 0), DATA_NAME, 100, 100)
    folder = write_index(tmp_path, parts)
    (folder / "metadata.json").write_text(json.dumps(FORMAT))
    store = DistStore(open_container(folder))
    with pytest.raises(SourceError, match="overlap"):
        store.read("t")
    with pytest.raises(SourceError, match="no chunk holds"):
        store.read("t", (slice(3, 4),))


def test_a_save_that_did_not_end_is_refused(tmp_path: Path) -> None:
    (saved(tmp_path) / "metadata.json").unlink()
    with pytest.raises(SourceError, match="never completed"):
        DistStore(open_container(tmp_path))


def test_zarr_is_named_and_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    assert read_backend(open_container(tmp_path)) == "zarr"
    with pytest.raises(SourceError, match="'zarr'"):
        DistStore(open_container(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sharded_backend": 5}', "[" * 100_000])
def test_a_damaged_format_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(SourceError, match=r"metadata\.json"):
        read_backend(open_container(tmp_path))


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    (saved(tmp_path) / INDEX_NAME).unlink()
    with pytest.raises(SourceError, match=r"has no \.metadata"):
        DistStore(open_container(tmp_path))


def test_opening_reads_no_data(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    size = (folder / DATA_NAME).stat().st_size
    (folder / DATA_NAME).write_bytes(bytes(size))
    store = DistStore(open_container(folder))
    assert store.tensors["t"].shape == (4, 3)
    with pytest.raises(SourceError, match="chunk 0 of t"):
        store.read("t")
