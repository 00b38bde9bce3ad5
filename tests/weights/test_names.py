"""Spellings found in archives of NeMo 1.2x to 2.x, megatron-core and our own runs."""

from __future__ import annotations

import pytest

from nemoalign.weights.names import (
    canonical_name,
    is_adapter,
    layer_of,
    names_experts,
    numbers_of,
    optimizer_name,
    pattern_of,
    stacked_key,
    with_numbers,
)

QKV = "self_attention.linear_qkv"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.embedding.word_embeddings.weight", "embedding.word_embeddings.weight"),
        (f"model.decoder.layers.{QKV}.weight", f"decoder.layers.{{i}}.{QKV}.weight"),
        (f"model.decoder.layers.11.{QKV}.weight", f"decoder.layers.11.{QKV}.weight"),
        (f"model.module.decoder.layers.0.{QKV}.bias", f"decoder.layers.0.{QKV}.bias"),
        ("module.output_layer.weight", "output_layer.weight"),
        ("decoder.final_layernorm.weight", "decoder.final_layernorm.weight"),
        (
            "model.decoder.layers.input_layernorm.bias",
            f"decoder.layers.{{i}}.{QKV}.layer_norm_bias",
        ),
        (
            "model.decoder.layers.3.pre_mlp_layernorm.weight",
            "decoder.layers.3.mlp.linear_fc1.layer_norm_weight",
        ),
        ("model._orig_mod.output_layer.weight", "output_layer.weight"),
        (
            "decoder.layers.1.mlp.experts.experts.7.linear_fc2.weight",
            "decoder.layers.1.mlp.experts.local_experts.7.linear_fc2.weight",
        ),
        (
            "model/module/decoder/layers.0.mlp.linear_fc2.weight",
            "decoder.layers.0.mlp.linear_fc2.weight",
        ),
        (f"model.decoder.layers.{QKV}._extra_state/shard_0_4", None),
        ("model.decoder.layers.0.self_attention.core_attention._extra_state", None),
        ("model.rotary_pos_emb.inv_freq", None),
        ("optimizer.state.exp_avg.model.output_layer.weight", None),
        ("model.value_head.weight", None),
        ("model.rm_head.weight", "rm_head.weight"),
    ],
)
def test_keys_on_disk_have_one_canonical_name(key, name):
    assert canonical_name(key) == name


def test_only_the_prefix_is_stripped_not_every_model_in_a_key():
    assert canonical_name("model.encoder.model.weight") == "encoder.model.weight"


EXPERT = "mlp.experts.local_experts"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (
            "model.decoder.layers.mlp.experts.experts.linear_fc1.weight",
            f"decoder.layers.{{i}}.{EXPERT}.{{e}}.linear_fc1.weight",
        ),
        (
            "module.decoder.layers.4.mlp.experts.experts.linear_fc2.weight",
            f"decoder.layers.4.{EXPERT}.{{e}}.linear_fc2.weight",
        ),
        (
            "decoder.layers.4.mlp.experts.experts.11.linear_fc2.weight",
            f"decoder.layers.4.{EXPERT}.11.linear_fc2.weight",
        ),
        (
            f"model.decoder.layers.0.{EXPERT}.3.linear_fc1.bias",
            f"decoder.layers.0.{EXPERT}.3.linear_fc1.bias",
        ),
        (
            "model.decoder.layers.0.mlp.experts.linear_fc1.weight12",
            f"decoder.layers.0.{EXPERT}.12.linear_fc1.weight",
        ),
        (
            "model.decoder.layers.pre_mlp_layernorm.weight",
            "decoder.layers.{i}.pre_mlp_layernorm.weight",
        ),
        # megatron-core's local spec stacks it under the name it has in a dense MLP.
        (
            "model.decoder.layers.mlp.linear_fc1.layer_norm_weight",
            "decoder.layers.{i}.pre_mlp_layernorm.weight",
        ),
    ],
)
def test_every_spelling_of_experts_has_one_canonical_name(key, name):
    assert canonical_name(key, has_experts=True) == name


def test_experts_stack_by_layer_and_number_under_nemos_doubled_key():
    name = f"decoder.layers.5.{EXPERT}.11.linear_fc1.weight"
    key = "model.decoder.layers.mlp.experts.experts.linear_fc1.weight"
    assert stacked_key(name) == (key, (5, 11))
    assert numbers_of(name) == (5, 11)
    assert pattern_of(name) == f"decoder.layers.{{i}}.{EXPERT}.{{e}}.linear_fc1.weight"
    assert with_numbers(pattern_of(name), 5, 11) == name
    assert names_experts([key])
    assert not names_experts(["model.decoder.layers.mlp.linear_fc1.weight"])


def test_canonical_names_stack_under_the_key_of_a_nemo_archive():
    assert stacked_key(f"decoder.layers.5.{QKV}.weight") == (
        f"model.decoder.layers.{QKV}.weight",
        (5,),
    )
    assert stacked_key("output_layer.weight") == ("model.output_layer.weight", ())


def test_layers_are_read_and_filled_in():
    assert layer_of("decoder.layers.12.mlp.linear_fc2.weight") == 12
    assert layer_of("decoder.final_layernorm.weight") is None
    assert with_numbers("decoder.layers.{i}.x", 3) == "decoder.layers.3.x"


def test_adapters_are_recognised():
    assert is_adapter("decoder.layers.0.mlp.adapter_layer.lora_4htoh_adapter.linear_in.weight")
    assert not is_adapter("decoder.layers.0.mlp.linear_fc2.weight")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (
            f"optimizer.state.exp_avg.model.decoder.layers.{QKV}.weight",
            f"exp_avg.decoder.layers.{{i}}.{QKV}.weight",
        ),
        ("optimizer.state.fp32_param.model.output_layer.weight", "fp32_param.output_layer.weight"),
        ("optimizer.state.exp_avg.model.decoder.layers.x._extra_state", None),
        ("optimizer.param_groups", None),
        ("model.output_layer.weight", None),
    ],
)
def test_state_of_an_optimizer_goes_by_its_weight(key, name):
    assert optimizer_name(key) == name
