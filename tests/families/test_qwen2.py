"""Qwen 2 against transformers: tensors, configuration, round trips and logits."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Qwen2Config

from nemoalign.errors import ContentError
from nemoalign.families.qwen2 import FAMILY
from nemoalign.weights.config_rules import nemo_fields
from tests.families import checks

MODELS: dict[str, dict[str, Any]] = {
    "untied": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "windowed": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
}


def config(**changes: Any) -> Qwen2Config:
    return Qwen2Config(**(checks.SIZES | changes))


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_table_and_config_are_those_of_transformers(changes, tmp_path):
    checks.assert_table_covers_the_model(FAMILY, config(**changes))
    checks.assert_config_comes_back(FAMILY, config(**changes), tmp_path)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_round_trip_and_logits(changes, tmp_path):
    hf = checks.save_model(tmp_path / "hf", config(**changes))
    nemo = checks.assert_round_trip(hf, tmp_path)
    checks.assert_same_logits(nemo, hf)
    checks.assert_export_without_memory(nemo, hf, tmp_path / "made")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None},
            "1 of 2 layers",
        ),
        (
            {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
            "1 of 2 layers",
        ),
        (
            {"use_sliding_window": True, "layer_types": ["full_attention", "chunked"]},
            "layer_types chunked",
        ),
    ],
)
def test_what_a_nemo_cannot_represent_is_refused_by_field(changes, words):
    with pytest.raises(ContentError, match=words):
        nemo_fields(FAMILY.config, config().to_dict() | changes)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"use_sliding_window": False, "max_window_layers": 0}, None),
        ({"use_sliding_window": True, "max_window_layers": 2}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, [8, 0]),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 2}, None),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, [8, 0]),
    ],
)
def test_the_window_is_that_of_every_layer_or_of_none(changes, window):
    written = config().to_dict() | {"layer_types": None, "sliding_window": 9} | changes
    assert nemo_fields(FAMILY.config, written)["window_size"] == window
