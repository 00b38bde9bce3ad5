from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from nemoalign.archive import zip_write
from nemoalign.archive.dtypes import DTYPES
from nemoalign.archive.safetensors_write import SafetensorsWriter, encode_header, plan_shards
from nemoalign.archive.store import TensorInfo
from nemoalign.errors import ContentError, ShapeError
from tests.archive.makers import SHAPES, bits, raw_array

INFOS = {
    f"t{n}.{name}": TensorInfo(shape, name) for name in DTYPES for n, shape in enumerate(SHAPES)
}


def arrays() -> dict[str, np.ndarray]:
    return {name: raw_array(info.dtype, info.shape, 7) for name, info in INFOS.items()}


def test_the_formats_own_library_reads_every_type_and_shape(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path, INFOS) as writer:
        for name, array in reversed(arrays().items()):
            writer.write(name, array)
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {
        name: array.tobytes() for name, array in arrays().items()
    }
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        stored = [name for name in file.offset_keys() if INFOS[name].size]
    assert stored == [name for name, info in INFOS.items() if info.size]


def test_every_tensor_has_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_write, "BLOCK_BYTES", 16)
    monkeypatch.setattr(zip_write, "PARALLEL_BYTES", 20)
    with SafetensorsWriter(tmp_path, INFOS) as writer:
        for name, array in arrays().items():
            writer.write(name, array)
    content = {name: array.tobytes() for name, array in arrays().items()}
    assert writer.checksums == {name: zlib.crc32(data) for name, data in content.items()}


def test_shards_and_index_are_those_transformers_writes(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=50,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=8000)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    infos = {name: TensorInfo(array.shape, "float32") for name, array in state.items()}
    with SafetensorsWriter(tmp_path / "ours", infos, 8000) as writer:
        for name, array in state.items():
            writer.write(name, array)
    index = "model.safetensors.index.json"
    assert (tmp_path / "ours" / index).read_text() == (tmp_path / "theirs" / index).read_text()
    loaded = LlamaForCausalLM.from_pretrained(
        write_config(tmp_path / "ours", config), dtype=torch.float32
    )
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def write_config(folder: Path, config: LlamaConfig) -> Path:
    config.save_pretrained(folder)
    return folder


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 40))
def test_shards_keep_the_order_and_the_limit(sizes: list[int], limit: int) -> None:
    tensors = {f"t{n}": TensorInfo((size,), "uint8") for n, size in enumerate(sizes)}
    shards = plan_shards(tensors, limit)
    assert [name for names in shards.values() for name in names] == list(tensors)
    for names in shards.values():
        assert len(names) == 1 or sum(tensors[name].size for name in names) <= limit
    assert list(shards) == sorted(shards)
    assert len(shards) == 1 or all(f"-of-{len(shards):05d}." in file for file in shards)


def test_the_data_begins_at_a_multiple_of_eight() -> None:
    for length in range(10):
        header = encode_header({"t" * length: TensorInfo((1,), "int8")})
        assert len(header) % 8 == 0
        assert json.loads(header[8:])["t" * length]["data_offsets"] == [0, 1]


ONE = {"a": TensorInfo((2, 3), "float32"), "b": TensorInfo((1,), "int64")}


def write_only_a(folder: Path) -> None:
    with SafetensorsWriter(folder, ONE) as writer:
        writer.write("a", np.zeros((2, 3), np.float32))


def test_a_tensor_that_never_came_is_an_error_and_nothing_appears(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match=r"1 declared tensors were never .* 'b'"):
        write_only_a(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_comes_once_and_as_declared(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path, ONE) as writer:
        with pytest.raises(ShapeError, match=r"'a' is float32 \[3, 2\]"):
            writer.write("a", np.zeros((3, 2), np.float32))
        with pytest.raises(ShapeError, match="'a' is float64"):
            writer.write("a", np.zeros((2, 3), np.float64))
        with pytest.raises(ContentError, match="'c' was not declared"):
            writer.write("c", np.zeros(1, np.float32))
        writer.write("a", np.zeros((2, 3), np.float32))
        with pytest.raises(ContentError, match="'a' is written a second time"):
            writer.write("a", np.zeros((2, 3), np.float32))
        writer.write("b", np.zeros(1, np.int64))


def test_a_strided_tensor_is_written_in_row_major_order(tmp_path: Path) -> None:
    array = raw_array("float32", (4, 6)).T
    with SafetensorsWriter(tmp_path, {"a": TensorInfo((6, 4), "float32")}) as writer:
        writer.write("a", array)
    assert bits(safetensors.torch.load_file(tmp_path / "model.safetensors")["a"]) == array.tobytes()


def test_nothing_is_there_before_the_end(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path, ONE) as writer:
        writer.write("a", np.zeros((2, 3), np.float32))
        assert not (tmp_path / "model.safetensors").exists()
        writer.write("b", np.zeros(1, np.int64))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
