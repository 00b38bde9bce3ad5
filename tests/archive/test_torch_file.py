from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.archive import torch_file as module
from nemoalign.archive.dtypes import DTYPES
from nemoalign.archive.files import open_container
from nemoalign.archive.store import TensorInfo
from nemoalign.archive.torch_file import (
    TorchFile,
    flatten_tensors,
)
from nemoalign.errors import NemoAlignError, SourceError
from tests.archive.makers import (
    FIXTURES,
    SHAPES,
    bits,
    calling,
    raw_array,
    region_of,
    replace_record,
    save,
    to_torch,
)


def opened(path: Path) -> TorchFile:
    return TorchFile(region_of(path), path.name)


@pytest.mark.parametrize("rank", ["mp_rank_00", "mp_rank_01"])
def test_a_genuine_rank_file_holds_what_torch_loads(rank: str, tmp_path: Path) -> None:
    member = open_container(FIXTURES / "llama_tp2_ranks.nemo").member(f"{rank}/model_weights.ckpt")
    (tmp_path / "w").write_bytes(member.read(1 << 20))
    with torch.serialization.safe_globals([io.BytesIO]):
        expected = torch.load(tmp_path / "w", weights_only=True)
    file = TorchFile(member, rank)
    tensors = {name: value for name, value in expected.items() if torch.is_tensor(value)}
    assert list(file.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert file.read(name).tobytes() == bits(tensor)
        assert file.tensors[name] == TensorInfo(tuple(tensor.shape), "float32")


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_we_read_a_tensor_torch_writes(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = raw_array(name, shape)
    file = opened(save(tmp_path / "t.pt", {"x": to_torch(array, name)}))
    found = file.read("x")
    assert (found.dtype, found.shape) == (DTYPES[name].numpy, shape)
    assert found.tobytes() == array.tobytes()


def test_views_share_a_storage_and_are_read_alone(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    value = {
        "rows": base[1:3],
        "columns": base[:, 2:4],
        "transposed": base.t(),
        "every other": base[::2],
        "parameter": torch.nn.Parameter(base[3]),
        "shared": base,
    }
    file = opened(save(tmp_path / "v.pt", value))
    for name, tensor in value.items():
        assert np.array_equal(file.read(name), tensor.detach().numpy())
        part = file.read(name, (slice(1, 2),))
        assert np.array_equal(part, tensor.detach().numpy()[1:2])


def test_nested_values_are_named_by_their_path(tmp_path: Path) -> None:
    ones = torch.ones(2)
    value = {"state_dict": {"model.a": ones}, "optimizer_states": [{"state": {0: (ones, 5)}}]}
    file = opened(save(tmp_path / "n.pt", value))
    assert list(file.tensors) == ["state_dict/model.a", "optimizer_states/0/state/0/0"]
    assert file.read("optimizer_states/0/state/0/0").tolist() == [1, 1]


def test_only_the_directory_is_read_when_a_file_is_opened(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"a": torch.ones(3)})
    broken = replace_record(path, tmp_path / "broken.pt", "data.pkl", b"no pickle")
    file = opened(broken)
    with pytest.raises(SourceError, match="no valid pickle"):
        _ = file.tensors


def test_an_evil_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "w.pt", {"a": torch.ones(3)})
    evil = replace_record(path, tmp_path / "e.pt", "data.pkl", calling("os", "system", "touch x"))
    with pytest.raises(SourceError, match=r"e\.pt names 'os\.system'"):
        _ = opened(evil).tree
    assert not (tmp_path / "x").exists()


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"a": torch.ones(3)})
    with pytest.raises(SourceError, match="big-endian"):
        opened(replace_record(path, tmp_path / "b.pt", "byteorder", b"big"))


@pytest.mark.parametrize("data", [b"", bytes(11)])
def test_a_tensor_larger_than_its_storage_is_refused(data: bytes, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"a": torch.ones(3)})
    file = opened(replace_record(path, tmp_path / "s.pt", "data/0", data))
    with pytest.raises(SourceError, match=f"only {len(data)}"):
        file.read("a")


def test_a_tensor_that_repeats_itself_is_refused(tmp_path: Path) -> None:
    file = opened(save(tmp_path / "w.pt", {"a": torch.ones(1).expand(1 << 40)}))
    with pytest.raises(SourceError, match="only 4"):
        file.read("a")


def test_values_that_contain_themselves_have_no_tensors_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    assert flatten_tensors(cycle) == {}
    bomb: object = ()
    for _ in range(15):
        bomb = {n: bomb for n in "abcdef"}
    monkeypatch.setattr(module, "MAX_NODES", 1000)
    with pytest.raises(SourceError, match="more than 1000 values"):
        flatten_tensors(bomb)


def test_two_tensors_cannot_have_one_name(tmp_path: Path) -> None:
    ones = torch.ones(1)
    file = opened(save(tmp_path / "w.pt", {"a/b": ones, "a": {"b": ones}}))
    with pytest.raises(SourceError, match="'a/b' twice"):
        _ = file.tensors


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    value = {"a": torch.ones(3, 2), "b": torch.ones(4, dtype=torch.bfloat16)}
    return save(tmp_path_factory.mktemp("flip") / "w.pt", value)


@settings(max_examples=40)
@given(st.data())
def test_flipped_bytes_give_a_tensor_or_our_error(
    small_file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(small_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / "f"
    path.write_bytes(content)
    with contextlib.suppress(NemoAlignError):
        file = opened(path)
        for name, info in file.tensors.items():
            with contextlib.suppress(NemoAlignError):
                assert file.read(name).nbytes == info.size_bytes
