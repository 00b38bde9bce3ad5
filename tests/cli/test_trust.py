"""inspect --check and --diff through the real program."""

import json
import tarfile
import zipfile
from pathlib import Path

from tests.cli.running import run

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
RANKS = FIXTURES / "llama_tp2_ranks.nemo"


def test_an_intact_archive_says_what_was_checked_without_torch():
    ended = run("inspect", RANKS, "--check")
    assert (ended.code, ended.err) == (0, "")
    with tarfile.open(RANKS) as tar:
        ranks = [m for m in tar.getmembers() if m.name.endswith(".ckpt")]
        zips = [zipfile.ZipFile(tar.extractfile(member)) for member in ranks]
        entries = [entry for each in zips for entry in each.infolist()]
    read = sum(entry.file_size for entry in entries)
    for words in (f"{read / 1000:.1f} KB", f"{len(entries)} of torch records", "27 tensors"):
        assert words in ended.out
    assert ended.out.endswith("intact\n")
    assert {"torch", "transformers", "megatron"} & ended.modules == set()


def test_damage_ends_with_6_and_names_the_tensor(tmp_path):
    data = bytearray(RANKS.read_bytes())
    data[400_000] ^= 1
    (tmp_path / "m.nemo").write_bytes(data)
    ended = run("inspect", tmp_path / "m.nemo", "--check", "--json")
    assert ended.code == 6
    report = json.loads(ended.out)
    (problem,) = report["problems"]
    assert not report["intact"]
    assert problem["file"] == "mp_rank_00/model_weights.ckpt"
    assert problem["tensor"] in ended.err
    assert ended.err.startswith("error: ")


def test_two_forms_of_one_model_are_the_same():
    ended = run("inspect", RANKS, "--diff", FIXTURES / "hf_llama")
    assert (ended.code, ended.err) == (0, "")
    assert "same: 27 tensors compared" in ended.out
    assert {"torch", "transformers", "megatron"} & ended.modules == set()


def test_another_model_ends_with_6_and_names_fields_and_tensors():
    ended = run("inspect", RANKS, "--diff", FIXTURES / "llhf_dist_dir")
    assert ended.code == 6
    assert "config     rotary_base: 10000.0 -> 50000.0" in ended.out
    assert "linear_qkv.weight: shape [128, 64] -> [256, 64]" in ended.out
    assert json.loads(run("inspect", RANKS, "--diff", RANKS, "--json").out)["same"]
