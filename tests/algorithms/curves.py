"""Runs of the real command whose curves are compared: with a peer's, and with each other."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.commands import tiny

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLAIN = ["--precision", "fp32", "--schedule", "constant", "--warmup", 0, "--weight-decay", 0]
LIKE_TRL = ["--gbs", 4, "--seq-len", 256, "--lr", "1e-3", "--beta", 0.1, *PLAIN]
BETAS = ["-s", "model.optim.betas=[0.9,0.999]"]
LAYOUTS = {
    "micro batch 4, unpacked, cached": ["--mbs", 4, "--no-packing", "--ref-cache"],
    "TP2 SP, cached by one rank": ["--mbs", 2, "--tp", 2, "--sequence-parallel", "--ref-cache"],
    "PP2": ["--mbs", 2, "--pp", 2],
    "DP2": ["--mbs", 1, "--devices", 2],
}
"""Every one of them gives the curve of one rank."""


def make(root: Path, algorithm: str) -> Path:
    """Write a tiny model and the rows of TRL's stored run; return their directory."""
    tiny.make_llama(root / "hf")
    tiny.write_rows(root / "rows.jsonl", stored(algorithm)["rows"])
    return root


def stored(algorithm: str) -> dict:
    return json.loads((FIXTURES / f"trl/{algorithm}.json").read_text())


def run(algorithm: str, made: Path, out: Path, *flags: object, steps: int = 10) -> list[dict]:
    tiny.quickly(
        algorithm, "--ckpt", made / "hf", "--data", made / "rows.jsonl", "-o", out,
        "--max-steps", steps, *LIKE_TRL, *BETAS, *flags,
    )  # fmt: skip
    return tiny.read_metrics(out)


def assert_close(found: list[dict], expected: list[dict], name: str, within: float) -> None:
    """Compare every metric of every step; a step without rows of a kind lacks their means in both."""
    told = {"step", "split", "epoch", "consumed_samples", "lr", "grad_norm"}
    timed = {"tokens_per_second", "memory_gib", "seconds"}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys(), name
        for key in theirs.keys() - told - timed:
            # A sum over an answer's tokens is as many times less exact as it has tokens.
            limit = 50 * within if key.startswith("logprobs") else within
            assert ours[key] == pytest.approx(theirs[key], abs=limit), (name, key)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), name


def assert_final_weights(read: Callable[[str], np.ndarray], oracle: dict) -> None:
    """Compare sum and norm of every tensor after NeMo-Aligner's last step, and that they moved."""
    assert len(oracle["final_params"]) > 10
    for name, expected in oracle["final_params"].items():
        tensor = read(name).astype(np.float64)
        norm = np.linalg.norm(tensor)
        assert norm == pytest.approx(expected["norm"], rel=2e-6), name
        assert tensor.sum() == pytest.approx(expected["sum"], abs=1e-3), name
