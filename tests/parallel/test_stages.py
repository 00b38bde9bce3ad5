"""Layers of pipeline stages, compared with megatron-core's own arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from nemoalign.errors import ConfigError
from nemoalign.parallel.stages import UnevenStages, stage_layers

YES_NO = st.booleans()


def megatron_stages(num_layers, pp, **uneven):
    config = TransformerConfig(
        num_layers=num_layers,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_model_parallel_size=pp,
        pipeline_dtype="float32",
        **uneven,
    )
    starts = [get_transformer_layer_offset(config, pp_rank=stage) for stage in range(pp)]
    sizes = [get_num_layers_to_build(config, pp_rank=stage) for stage in range(pp)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


@given(st.integers(1, 4), st.integers(2, 5), YES_NO, YES_NO)
def test_embedding_and_loss_may_count_as_layers(share, pp, embedding, loss):
    num_layers = share * pp - embedding - loss
    if num_layers < 1:
        return
    named = {
        "account_for_embedding_in_pipeline_split": embedding,
        "account_for_loss_in_pipeline_split": loss,
    }
    ours = stage_layers(num_layers, pp, UnevenStages.from_nemo(named))
    assert ours == megatron_stages(num_layers, pp, **named)


@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), YES_NO)
def test_the_first_and_last_stage_may_have_layers_of_their_own(share, pp, first, last, both):
    named = {"num_layers_in_first_pipeline_stage": first}
    if both:
        named["num_layers_in_last_pipeline_stage"] = last
    num_layers = sum(named.values()) + share * (pp - len(named))
    ours = stage_layers(num_layers, pp, UnevenStages.from_nemo(named))
    assert ours == megatron_stages(num_layers, pp, **named)


def test_layers_that_do_not_come_out_even_are_refused_with_the_sizes_that_do():
    with pytest.raises(ConfigError, match=r"30 layers .* --pp 4; use --pp 1, 2, 3, 5, 6, 10, 15"):
        stage_layers(30, 4)
    with pytest.raises(ConfigError, match=r"use --pp 1, 2, 3, 5, 6, 10, 15 or 30"):
        stage_layers(30, 31)
    uneven = UnevenStages(embedding_counts=True, loss_counts=True)
    with pytest.raises(ConfigError, match=r"model_config.yaml .*use --pp 1, 2, 4, 8"):
        stage_layers(30, 3, uneven)


def test_a_setting_that_is_no_number_of_layers_is_none():
    wrong = {"num_layers_in_first_pipeline_stage": "many", "last_pipeline_num_layers": True}
    assert UnevenStages.from_nemo(wrong) == UnevenStages()
    assert UnevenStages.from_nemo({"first_pipeline_num_layers": 3}) == UnevenStages(first=3)
