"""A run directory as far as its files are there."""

import json
import math

from nemoalign.train.report.read import read_run


def test_an_empty_directory_is_a_run_of_which_nothing_is_known(tmp_path) -> None:
    run = read_run(tmp_path)
    assert (run.about, run.summary, run.curves, run.last, run.data) == ({}, {}, {}, {}, None)
    assert (run.warnings, run.generations, run.rollouts) == ([], [], [])


def test_of_rollouts_the_newest_and_the_first_are_read(tmp_path) -> None:
    rows = [{"step": step, "response": f"{step}.{n}"} for step in (1, 2, 3) for n in range(9)]
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4')
    newest, first = ([row["response"] for row in kept] for kept in read_run(tmp_path).rollouts)
    assert newest == ["3.3", "3.4", "3.5", "3.6", "3.7", "3.8"]
    assert first == ["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert read_run(tmp_path).rollouts == [rows[:2]]


def test_a_step_that_was_repeated_counts_once_and_validation_joins_its_metric(tmp_path) -> None:
    lines = [
        {"split": "train", "step": 1, "loss": 3.0, "epoch": 0, "consumed_samples": 8},
        {"split": "val", "step": 1, "val_loss": 2.5, "val_accuracy": 0.5},
        {"split": "train", "step": 2, "loss": math.nan},
        {"split": "train", "step": 2, "loss": 2.0, "accuracy": 0.25},
        {"split": "test", "step": 2, "test_loss": 1.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(f"{text}[1]\nnonsense\n" + '{"split": "tra')
    run = read_run(tmp_path)
    assert run.curves == {
        "loss": {"train": {1: 3.0, 2: 2.0}, "val": {1: 2.5}, "test": {2: 1.5}},
        "accuracy": {"val": {1: 0.5}, "train": {2: 0.25}},
    }
    assert run.last["step"] == 2


def test_broken_files_are_left_out(tmp_path) -> None:
    for name in ("run.json", "summary.json", "data_report.json", "warnings.jsonl"):
        (tmp_path / name).write_bytes(b"\xff{")
    (tmp_path / "summary.json").write_text("[1]")
    run = read_run(tmp_path)
    assert (run.about, run.summary, run.data, run.warnings) == ({}, {}, None, [])
