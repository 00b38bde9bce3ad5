"""Names of NeMo's own GPT as its converter to megatron-core maps them, and what it never mapped."""

from __future__ import annotations

import pytest

from nemoalign.weights.legacy import is_legacy, modern_name
from nemoalign.weights.names import canonical_name

ENCODER = "model.language_model.encoder.layers.3."
LAYER = "decoder.layers.3."


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (ENCODER + "input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
        (ENCODER + "input_layernorm.bias", "self_attention.linear_qkv.layer_norm_bias"),
        (ENCODER + "self_attention.query_key_value.weight", "self_attention.linear_qkv.weight"),
        (ENCODER + "self_attention.dense.bias", "self_attention.linear_proj.bias"),
        (ENCODER + "post_attention_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
        (ENCODER + "mlp.dense_h_to_4h.weight", "mlp.linear_fc1.weight"),
        (ENCODER + "mlp.dense_4h_to_h.bias", "mlp.linear_fc2.bias"),
        # Transformer Engine's TransformerLayer, also under megatron-core's decoder.
        (
            ENCODER + "self_attention.layernorm_qkv.layer_norm_weight",
            "self_attention.linear_qkv.layer_norm_weight",
        ),
        (ENCODER + "self_attention.layernorm_qkv.weight", "self_attention.linear_qkv.weight"),
        (ENCODER + "self_attention.proj.bias", "self_attention.linear_proj.bias"),
        (ENCODER + "layernorm_mlp.layer_norm_bias", "mlp.linear_fc1.layer_norm_bias"),
        (ENCODER + "layernorm_mlp.fc1_weight", "mlp.linear_fc1.weight"),
        (f"model.{LAYER}layernorm_mlp.fc2_bias", "mlp.linear_fc2.bias"),
        # The first Megatron-LM.
        (
            "language_model.transformer.layers.3.attention.query_key_value.bias",
            "self_attention.linear_qkv.bias",
        ),
        (
            ENCODER + "mlp.adapter_layer.lora_hto4h_adapter.linear_in.weight",
            "mlp.adapter_layer.lora_hto4h_adapter.linear_in.weight",
        ),
    ],
)
def test_names_inside_a_layer(key, name):
    assert canonical_name(key) == LAYER + name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("embedding.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("embedding.position_embeddings.weight", "embedding.position_embeddings.weight"),
        ("encoder.final_layernorm.bias", "decoder.final_layernorm.bias"),
        ("transformer.final_layernorm.weight", "decoder.final_layernorm.weight"),
        ("output_layer.weight", "output_layer.weight"),
        ("rotary_pos_emb.inv_freq", None),
        ("encoder.layers.0.mlp.dense_4h_to_h._extra_state", None),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.", "model.module.", "module.", "model._orig_mod."])
def test_names_outside_of_layers_under_any_prefix(prefix, key, name):
    assert canonical_name(f"{prefix}language_model.{key}") == name


def test_nested_dictionaries_give_the_same_names():
    key = "language_model/encoder/layers.0.self_attention.query_key_value.weight"
    assert canonical_name(key) == "decoder.layers.0.self_attention.linear_qkv.weight"
    assert canonical_name("language_model/rotary_pos_emb/inv_freq") is None


@pytest.mark.parametrize("key", ["model.word_embeddings.weight", "word_embeddings_for_head/weight"])
def test_the_copy_on_the_last_stage_is_an_output_layer(key):
    assert canonical_name(key) == "output_layer.weight"


@pytest.mark.parametrize(
    "name",
    [
        "embedding.word_embeddings.weight",
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.0.mlp.linear_fc1.weight",
        "decoder.final_layernorm.bias",
    ],
)
def test_names_of_megatron_core_are_kept(name):
    assert modern_name(name) == name
    assert not is_legacy(f"model.{name}")


def test_legacy_names_are_recognised():
    assert is_legacy("model.language_model.encoder.layers.0.input_layernorm.weight")
    assert is_legacy("word_embeddings_for_head/weight")
