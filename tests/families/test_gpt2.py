"""GPT-2 against transformers: tensors, configuration, round trips and logits."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModel, GPT2Config

from nemoalign.checkpoint.convert import convert
from nemoalign.errors import ContentError
from nemoalign.families.gpt2 import FAMILY
from nemoalign.weights.config_rules import nemo_fields
from tests.families import checks

SIZES: dict[str, Any] = {
    "vocab_size": checks.VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 48,
    "initializer_range": 0.1,
}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, wide": {"tie_word_embeddings": False, "n_inner": 48},
    "exact gelu": {"activation_function": "gelu", "layer_norm_epsilon": 1e-6},
    "quick gelu": {"activation_function": "quick_gelu"},
}


def config(**changes: Any) -> GPT2Config:
    return GPT2Config(**(SIZES | changes))


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
        ({"activation_function": "silu"}, "activation_function"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_what_a_nemo_cannot_represent_is_refused_by_field(changes, words):
    with pytest.raises(ContentError, match=words):
        nemo_fields(FAMILY.config, config().to_dict() | changes)


def test_a_model_saved_without_its_head_is_the_same_model(tmp_path):
    """As the first GPT-2 lies on the hub: no "transformer." before its names."""
    hf = checks.save_model(tmp_path / "hf", config())
    AutoModel.from_pretrained(hf).save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_bytes((hf / "config.json").read_bytes())
    convert(tmp_path / "bare", tmp_path / "bare.nemo", reporter=checks.QUIET)
    checks.assert_same_logits(tmp_path / "bare.nemo", hf)
