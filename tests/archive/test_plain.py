from __future__ import annotations

import argparse
import pickle

import pytest
import torch
from omegaconf import OmegaConf

from nemoalign.archive.pickles import load_pickle
from nemoalign.archive.plain import plain_config
from nemoalign.archive.stand_ins import Record
from nemoalign.errors import SourceError

TREE = {
    "cfg": {
        "num_layers": 4,
        "layernorm_epsilon": 1e-5,
        "bias": False,
        "kv_channels": None,
        "name": "gpt",
        "data": {"files": ["a", {"b": 1}], "seq": "${..num_layers}", "out": "???"},
        "empty": {},
    }
}


def converted(value: object) -> object:
    return plain_config(load_pickle(pickle.dumps(value), "test"), "test")


def test_a_pickled_config_is_what_omegaconf_makes_of_it() -> None:
    config = OmegaConf.create(TREE)
    assert converted(config) == OmegaConf.to_container(config, resolve=False) == TREE


def test_a_config_that_is_missing_or_a_reference_stays_so() -> None:
    config = OmegaConf.create({"a": {"b": 1}, "c": "${a}", "d": "???", "e": None})
    assert converted(config) == {"a": {"b": 1}, "c": "${a}", "d": "???", "e": None}
    assert converted(OmegaConf.create([1, [2, "x"]])) == [1, [2, "x"]]


def test_ordinary_values_are_kept_and_others_become_none() -> None:
    value = {"a": (1, 2.5, True), 3: "x", "t": torch.Size([1]), "d": torch.float32}
    assert converted(value) == {"a": [1, 2.5, True], "3": "x", "t": [1], "d": None}
    assert converted(argparse.Namespace(lr=1)) == {"lr": 1}
    assert plain_config(Record("Unknown"), "test") is None


def test_a_config_that_contains_itself_is_refused() -> None:
    cycle: dict[str, object] = {}
    cycle["a"] = cycle
    with pytest.raises(SourceError, match="without end"):
        plain_config(cycle, "test")
    bomb: object = 1
    for _ in range(30):
        bomb = [bomb] * 10
    with pytest.raises(SourceError, match="without end"):
        plain_config(bomb, "test")
