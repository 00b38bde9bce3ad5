from __future__ import annotations

import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from nemoalign.archive.dist import DistStore
from nemoalign.archive.dist_write import DistWriter
from nemoalign.archive.files import open_container
from nemoalign.archive.sink import DirectoryWriter, Sink
from nemoalign.archive.tar import TarWriter
from nemoalign.errors import ContentError, ShapeError
from tests.archive.makers import bits, raw_array, to_torch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

LAYERS, HIDDEN, FFN = 3, 8, 12
FC1 = "model.decoder.layers.mlp.linear_fc1.weight"
PROJ = "model.decoder.layers.self_attention.linear_proj.weight"

TENSORS = {
    "model.embedding.word_embeddings.weight": raw_array("bfloat16", (40, HIDDEN), 1),
    FC1: raw_array("bfloat16", (LAYERS, 2 * FFN, HIDDEN), 2),
    PROJ: raw_array("bfloat16", (LAYERS, HIDDEN, HIDDEN), 3),
    "model.decoder.final_layernorm.weight": raw_array("float32", (HIDDEN,), 4),
    "model.scalar": raw_array("float32", (), 5),
}
KINDS = {key: "float32" if array.itemsize == 4 else "bfloat16" for key, array in TENSORS.items()}


def write_example(sink: Sink, prefix: str = "model_weights/") -> DistWriter:
    """Write layer by layer, the gated matrix of a layer in two chunks."""
    with DistWriter(sink, prefix) as writer:
        for key, array in TENSORS.items():
            if key not in (FC1, PROJ):
                writer.add(key, array.shape, (0,) * array.ndim, array, KINDS[key])
        for layer in range(LAYERS):
            for key, parts in ((FC1, 2), (PROJ, 1)):
                rows = TENSORS[key].shape[1] // parts
                for part in range(parts):
                    chunk = TENSORS[key][layer : layer + 1, part * rows : (part + 1) * rows]
                    offsets = (layer, part * rows, 0)
                    writer.add(key, TENSORS[key].shape, offsets, chunk, KINDS[key])
    return writer


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DistWriter]:
    path = tmp_path_factory.mktemp("dist") / "m.nemo"
    with TarWriter(path) as tar:
        tar.add_bytes("model_config.yaml", b"a: 1\n")
        writer = write_example(tar)
    return path, writer


@pytest.fixture(scope="module")
def directory(archive: tuple[Path, DistWriter], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive[0]) as tar:
        tar.extractall(folder, filter="data")
    return folder / "model_weights"


def test_torch_loads_every_tensor(directory: Path) -> None:
    loaded = {
        key: torch.zeros(array.shape, dtype=getattr(torch, KINDS[key]))
        for key, array in TENSORS.items()
    }
    dcp.load(loaded, checkpoint_id=directory, no_dist=True)
    assert {key: bits(tensor) for key, tensor in loaded.items()} == {
        key: array.tobytes() for key, array in TENSORS.items()
    }


def test_torch_loads_every_record_alone(directory: Path) -> None:
    metadata = dcp.FileSystemReader(directory).read_metadata()
    content = (directory / "__0_0.distcp").read_bytes()
    for place, info in metadata.storage_data.items():
        record = directory.parent / "record.pt"
        record.write_bytes(content[info.offset : info.offset + info.length])
        tensor = torch.load(record, weights_only=True, mmap=True)
        origin = tuple(place.offset)
        cut = tuple(slice(o, o + n) for o, n in zip(origin, tensor.shape, strict=True))
        assert bits(tensor) == TENSORS[place.fqn][cut].tobytes()


def test_the_index_is_what_torch_writes_for_whole_tensors(tmp_path: Path) -> None:
    tensors = {key: to_torch(array, KINDS[key]) for key, array in TENSORS.items()}
    dcp.save(tensors, checkpoint_id=tmp_path / "torch", no_dist=True)
    with DirectoryWriter(tmp_path / "ours") as sink, DistWriter(sink, "") as writer:
        for key, array in TENSORS.items():
            writer.add(key, array.shape, (0,) * array.ndim, array, KINDS[key])
    theirs = dcp.FileSystemReader(tmp_path / "torch").read_metadata()
    ours = dcp.FileSystemReader(tmp_path / "ours").read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.version == theirs.version
    assert set(ours.storage_data) == set(theirs.storage_data)
    assert {p.index for p in ours.storage_data} == {p.index for p in theirs.storage_data}


def test_no_path_or_time_of_this_machine_is_written(directory: Path) -> None:
    meta = dcp.FileSystemReader(directory).read_metadata().storage_meta
    assert (meta.checkpoint_id, meta.save_id, meta.modules) == (None, None, [])


def test_the_same_tensors_give_the_same_bytes(
    archive: tuple[Path, DistWriter], tmp_path: Path
) -> None:
    with TarWriter(tmp_path / "again.nemo") as tar:
        tar.add_bytes("model_config.yaml", b"a: 1\n")
        write_example(tar)
    assert (tmp_path / "again.nemo").read_bytes() == archive[0].read_bytes()


def test_files_are_named_and_ordered_as_megatron_does(archive: tuple[Path, DistWriter]) -> None:
    with tarfile.open(archive[0]) as tar:
        assert tar.getnames()[2:] == [
            "./model_weights",
            "./model_weights/__0_0.distcp",
            "./model_weights/.metadata",
            "./model_weights/common.pt",
            "./model_weights/metadata.json",
        ]


def test_data_is_aligned_inside_the_archive(archive: tuple[Path, DistWriter]) -> None:
    store = DistStore(open_container(archive[0]).under("model_weights"))
    for key in store.tensors:
        assert store.read(key).ctypes.data % 64 == 0 or len(store.chunks(key)) > 1
    assert store.read(FC1, (slice(1, 2), slice(0, FFN))).ctypes.data % 64 == 0


def test_our_reader_gives_back_what_was_written(archive: tuple[Path, DistWriter]) -> None:
    store = DistStore(open_container(archive[0]).under("model_weights"))
    for key, array in TENSORS.items():
        assert store.read(key).tobytes() == array.tobytes()
        assert (store.tensors[key].shape, store.tensors[key].dtype) == (array.shape, KINDS[key])
    assert (
        store.read(FC1, (slice(1, 2), slice(5, 20))).tobytes() == TENSORS[FC1][1:2, 5:20].tobytes()
    )
    assert store.common == {}
    assert len(store.chunks(FC1)) == 2 * LAYERS


def test_every_chunk_has_its_checksum(archive: tuple[Path, DistWriter]) -> None:
    writer = archive[1]
    assert len(writer.checksums) == 3 + 3 * LAYERS
    chunk = TENSORS[FC1][2:3, FFN:].tobytes()
    assert writer.checksums[FC1, (2, FFN, 0)] == zlib.crc32(chunk)


def test_a_strided_chunk_is_written_in_row_major_order(tmp_path: Path) -> None:
    array = raw_array("float32", (4, 6)).T
    with DirectoryWriter(tmp_path / "d") as sink, DistWriter(sink, "") as writer:
        writer.add("a", (6, 4), (0, 0), array, "float32")
    loaded = {"a": torch.zeros(6, 4)}
    dcp.load(loaded, checkpoint_id=tmp_path / "d", no_dist=True)
    assert bits(loaded["a"]) == array.tobytes()
    assert writer.checksums["a", (0, 0)] == zlib.crc32(array.tobytes())


def write_half(target: Path) -> None:
    with DirectoryWriter(target) as sink, DistWriter(sink) as writer:
        writer.add("a", (4, 2), (0, 0), np.zeros((2, 2), np.float32), "float32")


def test_a_tensor_with_holes_is_an_error_and_nothing_appears(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match="'a' has 8 elements, but chunks with 4"):
        write_half(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "offsets", "array", "kind"),
    [
        ((4, 2), (3, 0), np.zeros((2, 2), np.float32), "float32"),
        ((4, 2), (-1, 0), np.zeros((2, 2), np.float32), "float32"),
        ((4, 2), (0,), np.zeros((2, 2), np.float32), "float32"),
        ((4, 2), (0, 0), np.zeros(2, np.float32), "float32"),
        ((4, 2), (0, 0), np.zeros((2, 2), np.float64), "float32"),
        ((4, 2), (0, 0), np.zeros((2, 2), np.float16), "bfloat16"),
    ],
)
def test_a_chunk_that_does_not_fit_is_an_error(
    shape: tuple[int, ...], offsets: tuple[int, ...], array: np.ndarray, kind: str, tmp_path: Path
) -> None:
    with DirectoryWriter(tmp_path / "d") as sink, DistWriter(sink) as writer:
        with pytest.raises(ShapeError, match="does not fit 'a'"):
            writer.add("a", shape, offsets, array, kind)
        writer.add("b", (1,), (0,), np.zeros(1, np.float32), "float32")


@pytest.mark.parametrize(
    ("shape", "offsets", "kind"),
    [((4, 2), (0, 0), "float32"), ((6, 2), (2, 0), "float32"), ((4, 2), (2, 0), "int32")],
)
def test_a_chunk_that_contradicts_an_earlier_one_is_an_error(
    shape: tuple[int, ...], offsets: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    half = np.zeros((2, 2), np.float32)
    with DirectoryWriter(tmp_path / "d") as sink, DistWriter(sink) as writer:
        writer.add("a", (4, 2), (0, 0), half, "float32")
        with pytest.raises(ContentError, match="'a' is given a second time"):
            writer.add("a", shape, offsets, half, kind)
        writer.add("a", (4, 2), (2, 0), half, "float32")


MEGATRON = """
    import sys
    import torch
    from torch import distributed
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    directory, key, target = sys.argv[1:]
    described = dist_checkpointing.load_tensors_metadata(directory)
    wanted = {
        name: ShardedTensor.from_rank_offsets(name, torch.zeros(one.global_shape, dtype=one.dtype))
        for name, one in described.items()
    }
    loaded = dict(dist_checkpointing.load(wanted, directory))
    layers, *shape = described[key].global_shape
    shards = {
        f"layer {layer}": ShardedTensor.from_rank_offsets(
            key,
            torch.zeros(shape, dtype=described[key].dtype),
            (0, layer, layers),
            prepend_axis_num=1,
        )
        for layer in range(layers)
    }
    loaded |= dist_checkpointing.load(shards, directory)
    torch.save(loaded, target)
"""


@pytest.mark.slow
def test_megatron_loads_stacked_tensors_whole_and_by_layer(directory: Path, tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(dedent(MEGATRON))
    arguments = [directory, FC1, tmp_path / "loaded.pt"]
    subprocess.run([sys.executable, script, *arguments], check=True, timeout=120)
    loaded = torch.load(tmp_path / "loaded.pt", weights_only=True)
    for layer in range(LAYERS):
        assert bits(loaded.pop(f"layer {layer}")) == TENSORS[FC1][layer].tobytes()
    assert {key: bits(tensor) for key, tensor in loaded.items()} == {
        key: array.tobytes() for key, array in TENSORS.items()
    }
