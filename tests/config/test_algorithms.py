"""Every row of the table is complete: its class exists, its defaults name settings."""

import importlib

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.fields import AlgorithmSettings


@pytest.mark.parametrize("row", ALGORITHMS.values(), ids=lambda row: row.name)
def test_a_row_is_complete(row):
    assert bool(row.target) is row.settings.trains
    if row.target:
        module, _, name = row.target.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), type)
    assert issubclass(row.settings, AlgorithmSettings)
    entries = row.entries()
    assert {key: entries[key].default for key in row.defaults} == row.defaults
    assert f"trainer.{row.name}.max_steps" in entries
