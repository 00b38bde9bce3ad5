"""Measuring without training: every row once, by any ranks, of any form of checkpoint."""

import json

import pytest

from tests.commands import tiny
from tests.commands.test_families import loss_of

EVALUATE = ["--max-steps", 0, "--precision", "fp32", "--gbs", 8, "--json"]


@pytest.mark.slow
def test_rows_fewer_than_a_global_batch_count_once_on_two_replicas(workshop, tmp_path) -> None:
    made = tiny.rows(3, seed=5)
    one = tiny.write_rows(tmp_path / "one.jsonl", made[:1])
    three = tiny.write_rows(tmp_path / "three.jsonl", made)
    out = tiny.quickly(
        "sft", "--ckpt", workshop / "m.nemo", "--val", one, "--test", three,
        "--devices", 2, "--mbs", 2, "-o", tmp_path / "run", *EVALUATE,
    )  # fmt: skip
    measured = json.loads(out)
    assert measured["val_loss"] == pytest.approx(loss_of(workshop / "hf", made[:1]), abs=1e-5)
    assert measured["test_loss"] == pytest.approx(loss_of(workshop / "hf", made), abs=1e-5)
    assert list((tmp_path / "run").rglob("*.nemo")) == []


@pytest.mark.slow
def test_a_trained_adapter_measures_alone_as_it_did_at_the_end_of_its_run(
    workshop, tmp_path
) -> None:
    held_out = tiny.write_rows(tmp_path / "test.jsonl", tiny.rows(3, seed=5))
    tiny.quickly(
        "sft", "--ckpt", workshop / "hf", "--data", workshop / "train.jsonl", "--test", held_out,
        "--lora", 4, "--lr", 0.01, "--gbs", 8, "--max-steps", 2, "--precision", "fp32",
        "-o", tmp_path / "run",
    )  # fmt: skip
    (test,) = tiny.read_metrics(tmp_path / "run", "test")
    assert test["step"] == 2
    out = tiny.quickly(
        "sft", "--ckpt", tmp_path / "run", "--test", held_out,
        "-o", tmp_path / "measured", *EVALUATE,
    )  # fmt: skip
    assert json.loads(out)["test_loss"] == pytest.approx(test["test_loss"], abs=1e-5)
    assert test["test_loss"] != pytest.approx(
        loss_of(workshop / "hf", tiny.rows(3, seed=5)), abs=1e-3
    )
