"""Rows of preference runs through the real command: what is wrong with them, said where it is."""

from pathlib import Path

import pytest

from tests.commands import tiny

PAIR = {"prompt": "What does the cat say?", "chosen": "a meow", "rejected": "a bark"}
LABEL = {"prompt": "What does the cat say?", "completion": "a meow", "label": True}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny.make_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    ("algorithm", "good", "bad", "says"),
    [
        ("dpo", PAIR, {"prompt": "Q", "chosen": "A"}, 'has no "rejected" field'),
        ("kto", LABEL, {"prompt": "Q", "completion": "A"}, "has none of label, preference"),
    ],
)
def test_a_bad_third_row_is_bad_data_with_its_place(llama, tmp_path, algorithm, good, bad, says) -> None:  # fmt: skip
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [good, good, bad, good])
    command = [algorithm, "--ckpt", llama, "--data", rows, "--gbs", 2, "--dry-run"]
    said = tiny.quickly(*command, talk=True, code=8)
    assert f"rows.jsonl line 3 {says}" in said
    assert "more are wrong" not in said
