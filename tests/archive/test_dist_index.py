from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as OldProperties

from nemoalign.archive.dist_index import INDEX_NAME, read_index
from nemoalign.archive.files import open_container
from nemoalign.archive.pickle_write import Call, Global, Instance, dump_pickle
from nemoalign.archive.store import TensorInfo
from nemoalign.errors import NemoAlignError, SourceError
from tests.archive.makers import FIXTURES, calling

METADATA = "torch.distributed.checkpoint.metadata"
FILE = "__0_0.distcp"


def size(*lengths: int) -> Call:
    return Call(Global("torch", "Size"), (lengths,))


def record(name: str, state: Any, module: str = METADATA) -> Instance:
    return Instance(Global(module, name), state)


def good() -> dict[str, Any]:
    """The parts of an index with one tensor [4, 6] in two chunks, and one entry of bytes."""
    return {
        "dtype": Global("torch", "float32"),
        "shape": (4, 6),
        "chunks": [((0, 0), (2, 6)), ((2, 0), (2, 6))],
        "places": [("t", (0, 0), FILE, 0, 100), ("t", (2, 0), FILE, 100, 100)],
        "bytes": [("extra/shard_0_1", FILE, 200, 50)],
        "transform": None,
        "module": METADATA,
    }


def write_index(folder: Path, parts: dict[str, Any]) -> Path:
    module = parts["module"]
    properties = record("TensorProperties", (parts["dtype"], None, False, None, False), module)
    chunks = [
        record("ChunkStorageMetadata", {"offsets": size(*o), "sizes": size(*s)}, module)
        for o, s in parts["chunks"]
    ]
    state = {"properties": properties, "size": size(*parts["shape"]), "chunks": chunks}
    entries = {"t": record("TensorStorageMetadata", state, module)}
    places: dict[Instance, Instance] = {}
    for key, offset, file, start, length in parts["places"]:
        index = record("MetadataIndex", {"fqn": key, "index": 0, "offset": size(*offset)}, module)
        info: dict[str, Any] = {"relative_path": file, "offset": start, "length": length}
        if parts["transform"]:
            info["transform_descriptors"] = parts["transform"]
        places[index] = record("_StorageInfo", info, "torch.distributed.checkpoint.filesystem")
    for key, file, start, length in parts["bytes"]:
        entries[key] = record("BytesStorageMetadata", None, module)
        info = {"relative_path": file, "offset": start, "length": length}
        places[record("MetadataIndex", {"fqn": key, "index": None}, module)] = record(
            "_StorageInfo", info, "torch.distributed.checkpoint.filesystem"
        )
    state = {"state_dict_metadata": entries, "planner_data": None, "storage_data": places}
    (folder / INDEX_NAME).write_bytes(dump_pickle(record("Metadata", state, module)))
    (folder / FILE).write_bytes(bytes(300))
    return folder


def test_a_genuine_index_names_every_tensor_and_chunk() -> None:
    index = read_index(open_container(FIXTURES / "llama.nemo").under("model_weights"))
    proj = index.tensors["model.decoder.layers.self_attention.linear_proj.weight"]
    assert proj.info == TensorInfo((4, 64, 64), "float32")
    assert proj.starts.tolist() == [[n, 0, 0] for n in range(4)]
    assert proj.ends.tolist() == [[n + 1, 64, 64] for n in range(4)]
    assert len(index.bytes_entries) == 20


def test_an_index_says_where_chunks_and_bytes_are(tmp_path: Path) -> None:
    index = read_index(open_container(write_index(tmp_path, good())))
    stored = index.tensors["t"]
    assert [(r.offset, r.size) for r in stored.records] == [(0, 100), (100, 100)]
    assert stored.touching(((1, 2), (0, 6))) == [0]
    assert stored.touching(((1, 3), (0, 1))) == [0, 1]
    assert stored.touching(((1, 1), (0, 1))) == []
    assert index.bytes_entries["extra/shard_0_1"].offset == 200


@pytest.mark.parametrize(
    "module",
    [
        "torch.distributed.checkpoint.metadata",
        "torch.distributed._shard.checkpoint.metadata",
        "torch.distributed._shard.sharded_tensor.metadata",
    ],
)
def test_classes_are_known_by_name_wherever_torch_kept_them(module: str, tmp_path: Path) -> None:
    index = read_index(open_container(write_index(tmp_path, {**good(), "module": module})))
    assert list(index.tensors) == ["t"]


def place(position: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    names = ("key", "offset", "file", "start", "length")

    def change(parts: dict[str, Any]) -> None:
        values = dict(zip(names, parts["places"][position], strict=True)) | changes
        parts["places"][position] = tuple(values.values())

    return change


def parts_with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts.update(changes)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a record behind the end of the file": (place(1, start=250), "only 300"),
    "a record before its beginning": (place(1, start=-100), "only 300"),
    "a record of negative length": (place(1, length=-1), "only 300"),
    "a path upwards": (place(0, file="../../etc/passwd"), "not in the checkpoint"),
    "an absolute path": (place(0, file="/etc/passwd"), "not in the checkpoint"),
    "a file that is not there": (place(0, file="__1_0.distcp"), "not in the checkpoint"),
    "two chunks on the same bytes": (place(1, start=50), "same bytes"),
    "two places for one chunk": (place(1, offset=(0, 0)), "two places"),
    "a chunk without a place": (place(1, offset=(3, 0)), "does not say where"),
    "compressed data": (parts_with(transform=["zstd"]), "transformed"),
    "an absurd shape": (parts_with(shape=(1 << 30, 1 << 30)), "impossible shape"),
    "a negative shape": (parts_with(shape=(-4, 6)), "states -4 as the length"),
    "a shape that chunks do not fill": (parts_with(shape=(5, 6)), "not covered exactly"),
    "a shape smaller than its chunks": (parts_with(shape=(3, 6)), "not covered exactly"),
    "chunks of another rank": (parts_with(chunks=[((0,), (4,))]), "does not fit its shape"),
    "chunks that claim more than their bytes": (
        parts_with(shape=(40, 6), chunks=[((0, 0), (20, 6)), ((2, 0), (20, 6))]),
        "more bytes than its records",
    ),
    "no element type": (parts_with(dtype=None), "no known element type"),
    "chunks that are numbers": (parts_with(chunks=[((0, 0), (2, 6))], shape=(4, 6)), "covered"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_an_index_that_contradicts_its_files_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    parts = good()
    change(parts)
    with pytest.raises(SourceError, match=message):
        read_index(open_container(write_index(tmp_path, parts)))


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        record("Metadata", {}),
        record("Metadata", {"state_dict_metadata": {}, "storage_data": None}),
        record("Metadata", {"state_dict_metadata": {"t": 5}, "storage_data": {}}),
        record("Metadata", {"state_dict_metadata": {}, "storage_data": {"t": 5}}),
        record(
            "Metadata",
            {
                "state_dict_metadata": {"t": record("BytesStorageMetadata", None)},
                "storage_data": {},
            },
        ),
    ],
)
def test_what_is_no_index_is_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_bytes(dump_pickle(value))
    with pytest.raises(SourceError, match=r"\.metadata"):
        read_index(open_container(tmp_path))


def test_an_evil_index_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / INDEX_NAME).write_bytes(calling("os", "system", "touch evil"))
    with pytest.raises(SourceError, match=r"os\.system"):
        read_index(open_container(tmp_path))
    assert not (tmp_path / "evil").exists()


@settings(max_examples=40)
@given(st.data())
def test_flipped_bytes_give_an_index_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = write_index(tmp_path_factory.mktemp("flip"), good())
    content = bytearray((folder / INDEX_NAME).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / INDEX_NAME).write_bytes(content)
    with contextlib.suppress(NemoAlignError):
        read_index(open_container(folder))


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_index_of_older_torch_reads_the_same(tmp_path: Path, protocol: int) -> None:
    """Until 2.2 the properties were a class of the sharded tensors, and nothing else was noted."""
    folder = FIXTURES / "mcore" / "layers"
    metadata = pickle.loads((folder / INDEX_NAME).read_bytes())
    for entry in metadata.state_dict_metadata.values():
        if hasattr(entry, "properties"):
            entry.properties = OldProperties(dtype=entry.properties.dtype)
    for name in set(vars(metadata)) - {"state_dict_metadata", "planner_data", "storage_data"}:
        delattr(metadata, name)
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / INDEX_NAME).write_bytes(pickle.dumps(metadata, protocol))
    old, new = (read_index(open_container(f)) for f in (tmp_path / "old", folder))
    assert {n: (t.info, t.starts.tolist()) for n, t in old.tensors.items()} == {
        n: (t.info, t.starts.tolist()) for n, t in new.tensors.items()
    }
