"""StarCoder 2 against transformers: tensors, configuration, round trips and logits."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Starcoder2Config

from nemoalign.errors import ContentError
from nemoalign.families.starcoder2 import FAMILY
from nemoalign.weights.config_rules import nemo_fields
from tests.families import checks

MODELS: dict[str, dict[str, Any]] = {
    "tied": {"sliding_window": None},
    "untied": {"tie_word_embeddings": False, "norm_epsilon": 1e-6},
    "windowed": {"sliding_window": 6},
    "no biases, exact gelu": {"use_bias": False, "hidden_act": "gelu"},
    "squared relu": {"hidden_act": "relu2"},
}


def config(**changes: Any) -> Starcoder2Config:
    return Starcoder2Config(**(checks.SIZES | changes))


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
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"sliding_window": "wide"}, "sliding_window"),
    ],
)
def test_what_a_nemo_cannot_represent_is_refused_by_field(changes, words):
    with pytest.raises(ContentError, match=words):
        nemo_fields(FAMILY.config, config().to_dict() | changes)
