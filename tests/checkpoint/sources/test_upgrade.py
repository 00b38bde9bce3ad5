"""What NeMo's own GPT and megatron-core's read differently in one configuration."""

from __future__ import annotations

import pytest

from nemoalign.checkpoint.sources.upgrade import upgraded_config
from nemoalign.errors import ContentError


def test_settings_that_mean_the_same_are_kept():
    config = {"mcore_gpt": False, "activation": "swiglu", "position_embedding_type": "rope", "x": 1}
    assert upgraded_config(config, "m") == {**config, "mcore_gpt": True}


def test_old_words_become_new_ones():
    config = {"bias_gelu_fusion": False, "normalization": "low_precision_layernorm"}
    upgraded = upgraded_config(config, "m")
    assert upgraded["bias_activation_fusion"] is False
    assert upgraded["normalization"] == "layernorm"
    assert upgraded_config({**config, "bias_activation_fusion": True}, "m")[
        "bias_activation_fusion"
    ]


def test_learned_positions_keep_their_number():
    """NeMo's own GPT sized them by max_position_embeddings, megatron-core by encoder_seq_length."""
    config = {"encoder_seq_length": 64, "max_position_embeddings": 128}
    assert upgraded_config(config, "m")["encoder_seq_length"] == 128
    assert (
        upgraded_config({**config, "position_embedding_type": "rope"}, "m")["encoder_seq_length"]
        == 64
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transformer_block_type", "post_ln"),
        ("transformer_block_type", ["pre_ln"]),
        ("position_embedding_type", "alibi"),
        ("megatron_legacy", True),
        ("normalize_attention_scores", False),
        ("headscale", True),
    ],
)
def test_what_only_the_old_model_computes_is_refused(name, value):
    with pytest.raises(ContentError, match=f"m has {name}"):
        upgraded_config({name: value}, "m")
