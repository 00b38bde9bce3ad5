"""Files of ranks: their names, that they verify, and that a model's size does not show in memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tarfile
import zlib

import pytest
import torch

from nemoalign.checkpoint.check import check
from nemoalign.checkpoint.reshard import reshard
from nemoalign.checkpoint.targets.cut import Cut, ReshardOptions
from nemoalign.checkpoint.targets.ranks import member_name
from nemoalign.errors import VerificationError
from tests.checkpoint.models import FIXTURES, BitFlip
from tests.checkpoint.rank_files import load_ranks
from tests.checkpoint.targets.test_nemo import write_model


@pytest.mark.parametrize(
    ("tp", "pp", "name"),
    [
        (1, 1, "model_weights.ckpt"),
        (4, 1, "mp_rank_03/model_weights.ckpt"),
        (4, 12, "tp_rank_03_pp_rank_011/model_weights.ckpt"),
        (1, 2, "tp_rank_00_pp_rank_001/model_weights.ckpt"),
    ],
)
def test_files_are_named_by_nemos_rule(tp, pp, name):
    assert member_name(Cut(tp=tp, pp=pp), tp - 1, pp - 1) == name


def test_the_members_are_a_folder_and_a_file_per_rank(tmp_path, quiet):
    target = tmp_path / "m.nemo"
    reshard(FIXTURES / "llama_tp2_ranks.nemo", target, ReshardOptions(tp=2), reporter=quiet)
    with tarfile.open(target) as tar:
        names = [name for name in tar.getnames() if "tokenizer" not in name]
        manifest = json.load(tar.extractfile("./nemoalign_manifest.json"))
    assert names == [
        ".",
        "./model_config.yaml",
        "./mp_rank_00",
        "./mp_rank_00/model_weights.ckpt",
        "./mp_rank_01",
        "./mp_rank_01/model_weights.ckpt",
        "./nemoalign_manifest.json",
    ]
    files = load_ranks(target)
    assert manifest["files"].keys() == {f"{name}/model_weights.ckpt" for name in files}
    assert all(len(manifest["files"][f"{name}/model_weights.ckpt"]) == 27 for name in files)


def test_the_names_of_local_norms_are_kept(tmp_path, quiet):
    """A model of megatron-core's local layers, per rank, has its norms as modules of their own."""
    source, target = tmp_path / "local", tmp_path / "m.nemo"
    reshard(FIXTURES / "llama_tp2_ranks.nemo", target, ReshardOptions(tp=1), reporter=quiet)
    source.mkdir()
    with tarfile.open(target) as tar:
        tar.extractall(source, filter="data")
    renamed = {
        key.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.").replace(
            "mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."
        ): tensor
        for key, tensor in load_ranks(target)["model_weights.ckpt"].items()
    }
    torch.save(renamed, source / "model_weights.ckpt")
    reshard(source, tmp_path / "pp2.nemo", ReshardOptions(tp=1, pp=2), reporter=quiet)
    files = load_ranks(tmp_path / "pp2.nemo")
    second = files["tp_rank_00_pp_rank_001"]
    assert "model.decoder.layers.1.pre_mlp_layernorm.weight" in second
    for key in ("input_layernorm.weight", "mlp.linear_fc1.weight"):
        ours, theirs = second[f"model.decoder.layers.0.{key}"], f"model.decoder.layers.2.{key}"
        assert torch.equal(ours, renamed[theirs])
    assert not any("layer_norm" in key for file in files.values() for key in file)


def test_check_compares_every_file_with_the_manifest(tmp_path, quiet):
    target = tmp_path / "m.nemo"
    reshard(FIXTURES / "llama_tp2_ranks.nemo", target, ReshardOptions(tp=2), reporter=quiet)
    found = check(target, quiet)
    assert (found["intact"], found["manifest_sums"]) == (True, 54)
    content = target.read_bytes()
    weight = load_ranks(target)["mp_rank_01"]["model.decoder.final_layernorm.weight"]
    at = content.rindex(weight.numpy().tobytes())
    crc = struct.pack("<L", zlib.crc32(weight.numpy().tobytes()))
    changed = bytearray(content)
    changed[at] ^= 1
    forged = struct.pack("<L", zlib.crc32(changed[at : at + weight.nbytes]))
    # Both sums inside the zip agree with the change; only the manifest still tells.
    target.write_bytes(bytes(changed).replace(crc, forged))
    problems = check(target, quiet)["problems"]
    assert any("manifest" in problem["problem"] for problem in problems)


def test_bytes_that_change_after_writing_fail_the_reshard(tmp_path):
    source = FIXTURES / "llama_tp2_ranks.nemo"
    with pytest.raises(VerificationError, match="is not what was written"):
        reshard(source, tmp_path / "m.nemo", ReshardOptions(tp=1), reporter=BitFlip(tmp_path))
    assert not list(tmp_path.iterdir())
    options = ReshardOptions(tp=1, verify="none")
    report = reshard(source, tmp_path / "m.nemo", options, reporter=BitFlip(tmp_path))
    assert report["verified"] == "none"


PEAK = """
import sys
from nemoalign.checkpoint.reshard import reshard
from nemoalign.checkpoint.targets.cut import ReshardOptions
from nemoalign.log import PlainReporter
quiet = PlainReporter(quiet=True)
source, folder = sys.argv[1:]
for number, options in enumerate([
    ReshardOptions(tp=4, pp=2, format="ranks"), ReshardOptions(tp=2), ReshardOptions(tp=4, format="dist"),
]):
    target = f"{folder}/{number}.nemo"
    reshard(source, target, options, reporter=quiet)
    source = target
assert not {"torch", "megatron", "transformers"} & set(sys.modules)
# ru_maxrss would begin with the memory of the process that ran this one.
status = open("/proc/self/status").read().split()
print(status[status.index("VmHWM:") + 1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    """4 MB a layer: from Hugging Face to eight ranks, to two, to a directory."""
    peaks = {}
    for layers in (2, 24):
        write_model(tmp_path / f"hf{layers}", layers)
        (tmp_path / f"o{layers}").mkdir()
        command = [sys.executable, "-c", PEAK, tmp_path / f"hf{layers}", tmp_path / f"o{layers}"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[layers] = int(run.stdout) * 1024
    assert peaks[24] - peaks[2] < 12 << 20, peaks
