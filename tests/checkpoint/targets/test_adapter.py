"""An adapter written alone is what NeMo would have written: one torch file, and readable as before."""

from __future__ import annotations

import io
import tarfile
import zlib

import numpy as np
import pytest
import torch

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import VerificationError
from tests.checkpoint.models import FIXTURES, BitFlip

LORA = FIXTURES / "lora_tp1.nemo"


def weights_in(archive, folder):
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    file = folder / "model_weights.ckpt"
    with torch.serialization.safe_globals([io.BytesIO]):
        return torch.load(file, weights_only=True)


def test_the_report_says_what_was_written(tmp_path, quiet):
    report = convert(LORA, tmp_path / "copy.nemo", reporter=quiet)
    state = weights_in(tmp_path / "copy.nemo", tmp_path / "ours")
    assert report["bytes"] == (tmp_path / "copy.nemo").stat().st_size
    for row in report["tensors"]:
        (name,) = row["target"]
        assert row["crc32"] == [f"{zlib.crc32(state[name].numpy().tobytes()):08x}"]


def test_torch_reads_the_same_adapter_out_of_both_archives(tmp_path, quiet):
    convert(LORA, tmp_path / "copy.nemo", reporter=quiet)
    ours = weights_in(tmp_path / "copy.nemo", tmp_path / "ours")
    theirs = weights_in(LORA, tmp_path / "theirs")
    tensors = {name: t for name, t in theirs.items() if isinstance(t, torch.Tensor)}
    assert list(ours) == list(tensors)
    assert all(torch.equal(ours[name], tensors[name]) for name in tensors)


def test_rank_base_and_settings_survive(tmp_path, quiet):
    convert(LORA, tmp_path / "copy.nemo", reporter=quiet)
    ours, theirs = open_source(tmp_path / "copy.nemo"), open_source(LORA)
    assert ours.is_adapter_only
    assert (ours.adapter.dim, ours.adapter.base) == (8, "base.nemo")
    assert ours.config["peft"] == theirs.config["peft"]
    assert set(ours.files) == set(theirs.files)


def test_the_dtype_can_be_changed(tmp_path, quiet):
    convert(LORA, tmp_path / "half.nemo", WriteOptions(dtype="fp16"), reporter=quiet)
    ours, theirs = (open_source(p).adapter.weights for p in (tmp_path / "half.nemo", LORA))
    for name, info in ours.tensors.items():
        assert info.dtype == "float16"
        np.testing.assert_array_equal(ours.read(name), theirs.read(name).astype(np.float16))


def test_bytes_that_change_after_writing_fail(tmp_path):
    with pytest.raises(VerificationError):
        convert(LORA, tmp_path / "copy.nemo", reporter=BitFlip(tmp_path))
    assert not list(tmp_path.iterdir())
