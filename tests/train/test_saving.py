"""Real runs on a disk that is full: a limit on the size of files, which the system answers likewise."""

import re
import resource
import shutil
import subprocess
import sys

import pytest

from nemoalign.train.rotation import find_last
from nemoalign.train.sums import find_damage
from tests.commands import tiny

SMALL = 300_000
"""Bytes: more than everything but tensors takes, less than the tensors."""


def _limited(*arguments, limit=SMALL) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "nemoalign", *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two steps, and how to go on with a copy of it."""
    root = tmp_path_factory.mktemp("begun")
    tiny.make_llama(root / "hf")
    tiny.write_rows(root / "rows.jsonl", tiny.rows(64, seed=1))
    sft = [
        "sft", "--ckpt", root / "hf", "--data", root / "rows.jsonl", "--precision", "fp32",
        "--gbs", 8, "--mbs", 4, "--save-every", 2, "--schedule", "constant",
    ]  # fmt: skip
    tiny.quickly(*sft, "-o", root / "run", "--max-steps", 2)
    (root / "run/summary.json").unlink()  # it would say that the run is done
    return root / "run", [*sft, "--max-steps", 6]


def _losses(run) -> dict:
    return {entry["step"]: entry["loss"] for entry in tiny.read_metrics(run)}


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_but_neither_old_ones_nor_the_run(begun, tmp_path) -> None:
    straight, sft = begun
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    full = _limited(*sft, "-o", tmp_path / "run")
    assert full.returncode == 7
    words = " ".join(full.stderr.split())
    assert re.search(r"warning: The checkpoint of step 4 .*File too large.*The run goes on", words)
    assert re.search(r"checkpoint of step 6 .*File too large.*type the same command", words)
    first = _losses(tmp_path / "run")
    assert list(first) == [1, 2, 3, 4, 5, 6]
    checkpoints = tmp_path / "run/checkpoints"
    (kept,) = (path for path in checkpoints.iterdir() if not path.is_symlink())
    assert kept == find_last(checkpoints)
    assert find_damage(kept) is None
    tiny.quickly(*sft, "-o", tmp_path / "run")
    assert _losses(tmp_path / "run") == first


@pytest.mark.slow
def test_metrics_that_cannot_be_written_end_the_run_with_one_sentence(begun, tmp_path) -> None:
    straight, sft = begun
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    (tmp_path / "run/metrics.jsonl").write_text("\n" * SMALL)
    full = _limited(*sft, "-o", tmp_path / "run")
    assert full.returncode == 7
    assert "metrics.jsonl could not be written: File too large" in " ".join(full.stderr.split())
    assert "bug" not in full.stderr
