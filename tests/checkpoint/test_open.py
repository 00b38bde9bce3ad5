"""What a source is follows from its content; what it is not gets one paragraph and its exit code."""

from __future__ import annotations

import shutil
import tarfile

import numpy as np
import pytest
import torch

from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.models import FIXTURES

KINDS = {
    "llama.nemo": ("nemo", "torch_dist", "llama", 512),
    "gpt_tp1_dist.nemo": ("nemo", "torch_dist", "gpt", 519),
    "gpt_tp2pp2_ranks.nemo": ("nemo", "per-rank TP2 PP2", "gpt", 519),
    "chatsft_tp1_file.nemo": ("nemo", "single file", "llama", 512),
    "llhf_dist_dir": ("nemo directory", "torch_dist", "llama", 640),
    "hf_llama": ("hf", "safetensors", "llama", 512),
    "lora_tp1.nemo": ("nemo", "single file", "llama", 512),
    "plckpt_dist": ("lightning", "torch_dist", "llama", 512),
    "legacyllama_tp1_file.nemo": ("nemo", "single file, legacy names", "llama", 512),
    "legacygptO2_tp1_file.nemo": ("nemo", "single file, legacy names", "gpt2", 519),
}


@pytest.mark.parametrize(("name", "expected"), KINDS.items(), ids=KINDS)
def test_genuine_checkpoints_are_recognised(name, expected):
    source = open_source(FIXTURES / name)
    assert (source.kind, source.layout, source.family.name, source.vocab_size) == expected
    assert source.is_adapter_only == (name == "lora_tp1.nemo")


def test_hugging_face_and_nemo_forms_of_one_model_are_one_source():
    """NVIDIA's converter made the archive of the directory; both sides agree in every bit."""
    nemo, hf = open_source(FIXTURES / "llama.nemo"), open_source(FIXTURES / "hf_llama")
    assert nemo.weights.tensors == hf.weights.tensors
    for name in nemo.weights.tensors:
        np.testing.assert_array_equal(nemo.weights.read(name), hf.weights.read(name))
    assert nemo.arch == hf.arch


def checkpoint(folder, name):
    path = folder / "checkpoints" / name
    shutil.copytree(FIXTURES / "llhf_dist_dir", path)
    return path


def test_a_run_directory_is_its_final_model(tmp_path):
    checkpoint(tmp_path, "megatron_gpt--step=10-last.ckpt")
    shutil.copy(FIXTURES / "llama.nemo", tmp_path / "megatron_gpt_sft.nemo")
    source = open_source(tmp_path)
    assert source.path == tmp_path / "megatron_gpt_sft.nemo"
    assert source.folder == tmp_path


def test_an_unfinished_run_is_its_newest_complete_checkpoint(tmp_path):
    checkpoint(tmp_path, "megatron_gpt--val_loss=0.1-step=9-epoch=0.ckpt")
    newest = checkpoint(tmp_path, "megatron_gpt--val_loss=0.2-step=10-epoch=0-last.ckpt")
    incomplete = checkpoint(tmp_path, "megatron_gpt--val_loss=0.0-step=11-epoch=0.ckpt")
    (incomplete / "model_weights/metadata.json").unlink()
    checkpoint(tmp_path, ".megatron_gpt--step=12.tmp")
    marked = checkpoint(tmp_path, "megatron_gpt--step=13.ckpt")
    marked.with_name("megatron_gpt--step=13-unfinished").touch()
    (tmp_path / "checkpoints/best.ckpt").symlink_to(newest)
    assert open_source(tmp_path).path == newest


def test_a_folder_that_holds_one_checkpoint_is_that_checkpoint(tmp_path):
    shutil.copy(FIXTURES / "llama.nemo", tmp_path / "anything.nemo")
    (tmp_path / "notes.txt").touch()
    assert open_source(tmp_path).path == tmp_path / "anything.nemo"
    shutil.copytree(FIXTURES / "hf_llama", tmp_path / "model")
    with pytest.raises(SourceError, match=r"2 checkpoints \(anything.nemo, model\). Name one"):
        open_source(tmp_path)


def test_nothing_there_says_so():
    with pytest.raises(SourceError, match=r"does not exist. Check the path"):
        open_source("missing.nemo")


def test_a_name_on_the_hub_says_how_to_fetch_it():
    with pytest.raises(SourceError, match=r"hf download meta-llama/Llama-3.2-1B"):
        open_source("meta-llama/Llama-3.2-1B")


def test_a_truncated_archive_names_the_member(tmp_path):
    content = (FIXTURES / "llama.nemo").read_bytes()
    (tmp_path / "cut.nemo").write_bytes(content[:600_000])
    with pytest.raises(SourceError, match=r"__0_1.distcp: the archive is truncated"):
        open_source(tmp_path / "cut.nemo")


def test_the_weights_of_an_unpacked_archive_are_that_archive(tmp_path):
    """One rank's file, the folder of a rank, a file at the root, a distributed folder."""
    for name, inner in (
        ("gpt_tp2pp2_ranks.nemo", "tp_rank_01_pp_rank_000/model_weights.ckpt"),
        ("gpt_tp2pp2_ranks.nemo", "tp_rank_01_pp_rank_000"),
        ("chatsft_tp1_file.nemo", "model_weights.ckpt"),
        ("llama.nemo", "model_weights"),
    ):
        folder = tmp_path / name
        with tarfile.open(FIXTURES / name) as tar:
            tar.extractall(folder, filter="data")
        source = open_source(folder / inner)
        assert (source.kind, source.path) == ("nemo directory", folder)


def test_a_run_of_nemos_is_its_final_archive(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    final = tmp_path / "checkpoints/megatron_gpt.nemo"
    shutil.copy(FIXTURES / "llama.nemo", final)
    torch.save({}, tmp_path / "checkpoints/megatron_gpt--step=3.ckpt")
    assert open_source(tmp_path).path == final


def test_a_compressed_archive_is_the_same_source(tmp_path):
    """As the connector of NeMo 1.6 and before packed its folder."""
    plain = FIXTURES / "chatsft_tp1_file.nemo"
    with tarfile.open(plain) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    with tarfile.open(tmp_path / "old.nemo", "w:gz") as tar:
        tar.add(tmp_path / "unpacked", arcname="./")
    old, new = open_source(tmp_path / "old.nemo"), open_source(plain)
    assert old.config == new.config
    assert old.weights.tensors == new.weights.tensors
    for name in new.weights.tensors:
        np.testing.assert_array_equal(old.weights.read(name), new.weights.read(name))


@pytest.mark.parametrize(
    ("files", "error", "match"),
    [
        ({"model.safetensors": ""}, SourceError, "is no checkpoint: it holds model.safetensors"),
        ({"config.json": "{}"}, SourceError, "weights are missing"),
        ({"weights/x": "", "context/y": ""}, SourceError, "NeMo 2"),
        ({"metadata.json": "{}"}, SourceError, "names no sharded_backend"),
        ({"model_config.yaml": "num_layers: 1"}, ContentError, "lacks hidden_size"),
        ({"model_config.yaml": "- 1"}, SourceError, "no mapping"),
        ({"config.json": "[]", "model.safetensors": ""}, SourceError, "no JSON object"),
        ({"config.json": "{", "model.safetensors": ""}, SourceError, "not valid JSON"),
        ({}, SourceError, "it holds nothing"),
    ],
)
def test_other_folders_are_refused_with_what_was_found(files, error, match, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=match):
        open_source(tmp_path)


def test_one_weights_file_names_the_folder_to_give(tmp_path):
    with pytest.raises(SourceError, match="Give its folder"):
        open_source(FIXTURES / "hf_llama/model.safetensors")
