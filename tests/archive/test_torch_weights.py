from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nemoalign.archive.files import open_container
from nemoalign.archive.torch_weights import (
    BIN_INDEX_NAME,
    BIN_NAME,
    BinStore,
    open_hf_weights,
)
from nemoalign.errors import NemoAlignError, SourceError
from tests.archive.makers import bits, calling, replace_record


def state(kind: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """What a state_dict may be: a tied output layer, a transposed weight, a slice of a larger one."""
    embedding = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).to(kind)
    return {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": embedding,
        "transposed": embedding.T,
        "slice": embedding[2:5, 1:3],
        "scalar": embedding[0, 0],
        "empty": embedding[:0],
    }


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_one_file_is_read_as_torch_saved_it(kind: torch.dtype, tmp_path: Path) -> None:
    torch.save(state(kind), tmp_path / BIN_NAME)
    store = open_hf_weights(open_container(tmp_path))
    assert store.layout == "pytorch_model.bin"
    assert list(store.tensors) == list(state())
    for name, tensor in state(kind).items():
        assert store.tensors[name].shape == tuple(tensor.shape)
        assert np.ascontiguousarray(store.read(name)).tobytes() == bits(tensor)


def test_shards_are_one_model(tmp_path: Path) -> None:
    files = {"lm_head.weight": "b.bin", "model.embed_tokens.weight": "b.bin", "slice": "a.bin"}
    for file in ("a.bin", "b.bin"):
        torch.save({n: state()[n] for n, f in files.items() if f == file}, tmp_path / file)
    (tmp_path / BIN_INDEX_NAME).write_text(json.dumps({"weight_map": files}))
    store = BinStore(open_container(tmp_path))
    assert store.tensors.keys() == files.keys()
    for name in files:
        assert np.ascontiguousarray(store.read(name)).tobytes() == bits(state()[name])


def test_safetensors_win(tmp_path: Path) -> None:
    torch.save({"old": torch.ones(1)}, tmp_path / BIN_NAME)
    save_file({"new": torch.ones(1)}, tmp_path / "model.safetensors")
    store = open_hf_weights(open_container(tmp_path))
    assert (list(store.tensors), store.layout) == (["new"], "safetensors")


def test_an_evil_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "good.bin")
    evil = calling("os", "system", "touch evil")
    replace_record(tmp_path / "good.bin", tmp_path / BIN_NAME, "data.pkl", evil)
    with pytest.raises(SourceError, match=r"pytorch_model\.bin names 'os\.system'"):
        BinStore(open_container(tmp_path))


def test_without_weights_the_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no model\.safetensors"):
        open_hf_weights(open_container(tmp_path))


@settings(max_examples=100)
@given(st.data())
def test_damaged_files_give_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    torch.save(state(), folder / BIN_NAME)
    content = bytearray((folder / BIN_NAME).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[at] = data.draw(st.integers(0, 255))
    (folder / BIN_NAME).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(NemoAlignError):
        store = BinStore(open_container(folder))
        for name in store.tensors:
            with contextlib.suppress(NemoAlignError):
                store.read(name)
