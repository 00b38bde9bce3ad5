"""A peer's preset gives the peer's own steps, with nothing of its own algorithm set beside it."""

import json
from pathlib import Path

import pytest

from tests.algorithms import curves
from tests.commands import tiny

SAME = ["--precision", "fp32", "--schedule", "constant", "--gbs", 4]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dpo", "kto"])
def test_ten_steps_are_trls(tmp_path, algorithm) -> None:
    made, stored = curves.make(tmp_path, algorithm), curves.stored(algorithm)
    tiny.quickly(
        algorithm, "--preset", "trl", "--ckpt", made / "hf", "--data", made / "rows.jsonl",
        "-o", tmp_path / "run", *SAME, "--mbs", 4, "--lr", "1e-3", "--max-steps", 10,
    )  # fmt: skip
    for ours, theirs in zip(tiny.read_metrics(tmp_path / "run"), stored["steps"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        if algorithm == "kto":
            assert ours["kl"] == pytest.approx(theirs["kl"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dpo", "kto"])
def test_five_steps_are_nemo_aligners(tmp_path, algorithm) -> None:
    oracle = json.loads((curves.FIXTURES / f"align/nemo_aligner_{algorithm}.json").read_text())
    rows = curves.FIXTURES / "align/pref.jsonl"
    if algorithm == "kto":
        rows = _labelled(rows, tmp_path / "rows.jsonl")
    tiny.quickly(
        algorithm, "--preset", "nemo-aligner", "--ckpt", curves.FIXTURES / "llama.nemo",
        "--data", rows, "-o", tmp_path / "run", *SAME, "--mbs", 2, "--max-steps", 5, "--epochs", 5,
        "--seq-len", 64, "--grad-clip", 0, "--lr", oracle["optimizer"]["lr"], "--weight-decay", 0,
        "--warmup", 0, "-s", "model.optim.sched.constant_steps=0",
    )  # fmt: skip
    for ours, theirs in zip(tiny.read_metrics(tmp_path / "run"), oracle["steps"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def _labelled(pairs: Path, to: Path) -> Path:
    """Write every other pair's better answer, and the others' worse one, as NeMo-Aligner keeps them."""
    made = []
    for number, line in enumerate(pairs.read_text().splitlines()):
        side, row = ("rejected" if number % 2 else "chosen"), json.loads(line)
        made.append(
            {"prompt": row["prompt"], "response": row[f"{side}_response"], "preference": side}
        )
    return tiny.write_rows(to, made)
