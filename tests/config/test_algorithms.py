"""Every row of the table is complete: its class exists, its defaults name settings."""

import importlib

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.fields import AlgorithmSettings

ROWS = ALGORITHMS.items()


@pytest.mark.parametrize("row", ALGORITHMS.values(), ids=lambda row: row.name)
def test_a_row_is_complete(row):
    assert bool(row.target) is row.settings.trains
    if row.target:
        module, _, name = row.target.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), type)
    assert issubclass(row.settings, AlgorithmSettings)
    entries = row.entries()
    assert {key: entries[key].default for key in row.defaults} == row.defaults
    assert {key: entries[key].setting.help for key in row.helps} == row.helps
    assert f"trainer.{row.name}.max_steps" in entries


def test_a_flag_that_commands_share_says_what_it_means_in_each():
    said = {name: row.entries()["model.global_batch_size"].setting for name, row in ROWS}
    assert said["sft"].help == said["dpo"].help == "Rows in one optimizer step, over all ranks."
    assert said["ppo"].help.startswith("Answers in one update")
    assert said["ppo"].flag == said["sft"].flag == "--gbs"


def test_prompts_are_asked_at_random_and_rows_read_in_order_unless_told_otherwise():
    shuffled = {name: row.entries()["model.data.train_ds.shuffle"].default for name, row in ROWS}
    assert [name for name, value in shuffled.items() if value] == ["ppo"]
