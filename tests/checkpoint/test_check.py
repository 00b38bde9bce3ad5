"""What ``inspect --check`` finds: damage of every kind, and nothing in what is whole."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemoalign.checkpoint.check import check
from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.errors import SourceError
from tests.checkpoint.damage import flipped, unpack, unpacked, with_changed_rank
from tests.checkpoint.models import FIXTURES, save_llama

WHOLE = (
    "chatsft_tp1_file.nemo",
    "gpt_tp1_dist.nemo",
    "gpt_tp2pp2_ranks.nemo",
    "llama_tp2_ranks.nemo",
    "llhf_dist_dir",
    "lora_tp1.nemo",
    "hf_llama",
    "llama_tp1_zarr.nemo",
    "zarr_tp2_bfloat16.nemo",
    "vit_tp1.nemo",
    "lightning_ranks",
    "plckpt_dist",
    "mixtral_ep2_dist",
    "peft_qv",
)
WITHOUT_SUMS = ("hf_llama", "llama_tp1_zarr.nemo", "zarr_tp2_bfloat16.nemo", "peft_qv")
FC2 = "decoder.layers.2.mlp.linear_fc2.weight"
NORM = "model.decoder.layers.1.mlp.linear_fc1.layer_norm_weight"


def tensors_of(report):
    return {found["tensor"] for found in report["problems"]}


@pytest.mark.parametrize("name", WHOLE)
def test_what_nemo_wrote_is_intact(name, quiet):
    report = check(FIXTURES / name, quiet)
    assert report["problems"] == []
    assert report["intact"]
    assert report["tensors"] > 0
    assert report["weights_have_sums"] == (name not in WITHOUT_SUMS)


def test_every_byte_of_the_weights_is_read(quiet):
    state = load_file(FIXTURES / "hf_llama/model.safetensors")
    weights = sum(tensor.nbytes for tensor in state.values())
    assert check(FIXTURES / "hf_llama", quiet)["bytes"] == weights
    assert check(FIXTURES / "llama.nemo", quiet)["bytes"] > weights


@pytest.mark.parametrize("name", ["gpt_tp1_dist.nemo", "llama_tp2_ranks.nemo"])
def test_a_flipped_byte_of_an_archive_of_nemo_is_found(name, tmp_path, quiet):
    """The bytes of one tensor, as another reader sees them, are searched in the file."""
    folder = unpacked(name, tmp_path / "open")
    if name.startswith("llama"):
        state = torch.load(folder / "mp_rank_01/model_weights.ckpt", weights_only=False)
        wanted = state[f"model.{FC2}"].numpy().tobytes()
    else:
        stored = torch.distributed.checkpoint.FileSystemReader(folder / "model_weights")
        key = "model.decoder.layers.mlp.linear_fc2.weight"
        shape = stored.read_metadata().state_dict_metadata[key].size
        stacked = {key: torch.empty(shape)}
        torch.distributed.checkpoint.load(
            stacked, checkpoint_id=folder / "model_weights", no_dist=True
        )
        wanted = stacked[key][2].contiguous().numpy().tobytes()
    whole = FIXTURES / name
    at = whole.read_bytes().index(wanted)
    for offset in (at, at + len(wanted) - 1):
        report = check(flipped(whole, tmp_path / "flipped.nemo", offset), quiet)
        assert tensors_of(report) == {FC2}
        assert "CRC-32" in report["problems"][0]["problem"]
        assert report["problems"][0]["file"]


def test_a_flipped_byte_of_our_archive_and_of_our_export_is_found(hf_llama, tmp_path, quiet):
    state = load_file(hf_llama / "model.safetensors")
    wanted = state["model.layers.2.mlp.down_proj.weight"].numpy().tobytes()
    archive, folder = tmp_path / "m.nemo", tmp_path / "hf"
    convert(hf_llama, archive, reporter=quiet)
    export(archive, folder, reporter=quiet)
    report = check(archive, quiet)
    assert (report["intact"], report["manifest"]) == (True, "nemoalign_manifest.json")
    assert check(folder, quiet)["manifest"] == "conversion.json"
    middle = archive.read_bytes().index(wanted) + len(wanted) // 2
    assert tensors_of(check(flipped(archive, tmp_path / "f.nemo", middle), quiet)) == {FC2}
    file = folder / "model.safetensors"
    flipped(file, file, file.read_bytes().index(wanted) + 7)
    assert tensors_of(check(folder, quiet)) == {"model.layers.2.mlp.down_proj.weight"}


def test_a_chunk_that_another_save_replaced_is_found_by_the_manifest(hf_llama, tmp_path, quiet):
    """The record agrees with itself, but not with what was once written."""
    convert(hf_llama, tmp_path / "a.nemo", reporter=quiet)
    state = load_file(hf_llama / "model.safetensors")
    state["model.norm.weight"] += 1
    other = shutil.copytree(hf_llama, tmp_path / "other")
    save_file(state, other / "model.safetensors", {"format": "pt"})
    convert(other, tmp_path / "b.nemo", reporter=quiet)
    first, second = (unpack(tmp_path / n, tmp_path / n[0]) for n in ("a.nemo", "b.nemo"))
    shutil.copy(second / "model_weights/__0_0.distcp", first / "model_weights/__0_0.distcp")
    report = check(first, quiet)
    assert tensors_of(report) == {"decoder.final_layernorm.weight"}
    assert "the manifest states" in report["problems"][0]["problem"]


def test_ranks_that_disagree_are_found(tmp_path, quiet):
    def change(state):
        state[NORM][3] += 1e-3

    folder = with_changed_rank("llama_tp2_ranks.nemo", tmp_path / "m", "mp_rank_01", change)
    report = check(folder, quiet)
    assert tensors_of(report) == {NORM.removeprefix("model.")}
    assert "rank 1 holds other values" in report["problems"][0]["problem"]
    assert "mp_rank_01" in report["problems"][0]["problem"]


def test_a_tied_copy_with_other_values_is_found(tmp_path, quiet):
    def change(state):
        state["model.output_layer.weight"][5] = 0

    rank = "tp_rank_01_pp_rank_001"
    folder = with_changed_rank("gpt_tp2pp2_ranks.nemo", tmp_path / "m", rank, change)
    problems = [found["problem"] for found in check(folder, quiet)["problems"]]
    assert len(problems) == 1
    assert "ties its embedding" in problems[0]


@pytest.mark.parametrize(
    ("name", "lost", "words"),
    [
        ("llama_tp2_ranks.nemo", "mp_rank_00/model_weights.ckpt", "tensor-parallel rank 0"),
        ("llama.nemo", "model_weights/__0_1.distcp", "__0_1.distcp"),
    ],
)
def test_a_missing_shard_is_found(name, lost, words, tmp_path, quiet):
    folder = unpacked(name, tmp_path / "m")
    (folder / lost).unlink()
    report = check(folder, quiet)
    assert not report["intact"]
    assert words in report["problems"][0]["problem"]


def test_a_missing_safetensors_shard_is_found(tmp_path, quiet):
    folder = save_llama(tmp_path / "m", max_shard_size="40KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()
    (found,) = check(folder, quiet)["problems"]
    assert "model-00002-of" in found["problem"]


def test_a_cut_archive_is_damaged_and_a_text_is_no_checkpoint(tmp_path, quiet):
    data = (FIXTURES / "llama.nemo").read_bytes()
    (tmp_path / "cut.nemo").write_bytes(data[: len(data) // 2])
    (report,) = check(tmp_path / "cut.nemo", quiet)["problems"]
    assert "truncated" in report["problem"]
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SourceError):
        check(tmp_path / "notes.txt", quiet)


def test_values_that_are_no_numbers_are_counted_and_no_damage(hf_llama, tmp_path, quiet, capsys):
    state = load_file(hf_llama / "model.safetensors")
    folder = shutil.copytree(hf_llama, tmp_path / "m")
    state["model.norm.weight"][:2] = torch.tensor([float("nan"), float("-inf")])
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    report = check(folder, quiet)
    assert report["not_finite"] == {"model.norm.weight": 2}
    assert report["intact"]
    assert "NaN or infinite" in capsys.readouterr().err


def test_torch_files_that_were_told_to_hold_no_sums_are_not_damaged(tmp_path, quiet):
    folder = unpacked("llama_tp2_ranks.nemo", tmp_path / "m")
    torch.serialization.set_crc32_options(False)
    try:
        for file in folder.glob("*/model_weights.ckpt"):
            torch.save(torch.load(file, weights_only=False), file)
    finally:
        torch.serialization.set_crc32_options(True)
    report = check(folder, quiet)
    assert (report["intact"], report["weights_have_sums"]) == (True, False)
