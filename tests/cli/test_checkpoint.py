"""convert and export through the real program: flags arrive, reports are shown, mistakes have codes."""

import json
from pathlib import Path

import pytest

from tests.cli.running import run

HF = Path(__file__).resolve().parents[1] / "fixtures" / "hf_llama"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("made") / "m.nemo"
    ended = run("convert", HF, "-o", target)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{target}: ")
    assert "verified by hash" in ended.out
    assert {"torch", "megatron", "transformers"} & ended.modules == set()
    return target


def test_there_and_back_gives_the_same_weights(archive, tmp_path):
    ended = run("export", archive, "-o", tmp_path / "hf", "--to", "hf", "--merge", "-q")
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == (
        HF / "tokenizer.model"
    ).read_bytes()
    assert (tmp_path / "hf" / "config.json").exists()


def test_json_prints_the_whole_report(archive, tmp_path):
    target = tmp_path / "half.nemo"
    ended = run("convert", archive, "-o", target, "--dtype", "bf16", "--verify", "none", "--json")
    report = json.loads(ended.out)
    assert report["target"] == {"path": str(target), "dtype": "bf16"}
    assert report["verified"] == "none"
    assert json.loads(run("inspect", target, "--json").out)["dtypes"] == ["bfloat16"]


def test_an_output_that_exists_needs_overwrite(archive):
    before = archive.stat().st_mtime_ns
    ended = run("convert", HF, "-o", archive)
    assert ended.code == 5
    assert "--overwrite" in ended.err
    assert archive.stat().st_mtime_ns == before
    assert run("convert", HF, "-o", archive, "--overwrite").code == 0


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(tmp_path):
    source = Path(__file__).resolve().parents[1] / "fixtures/hf_llama"
    ended = run("convert", source, "-o", tmp_path / "m.nemo", "-n")
    assert ended.code == 0
    assert "m.nemo would take 854.3 KB" in ended.out
    assert "Nothing was written." in ended.out
    assert {"torch", "transformers", "megatron"} & ended.modules == set()
    found = json.loads(
        run("reshard", source, "-o", tmp_path / "r.nemo", "--tp", 2, "-n", "--json").out
    )
    assert found["dry_run"]
    assert not list(tmp_path.iterdir())
