"""config.json to model_config.yaml fields and back; transformers says what a config.json means."""

from __future__ import annotations

import pytest

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.config_rules import (
    Choice,
    Field,
    Heads,
    Positions,
    Rope,
    hf_fields,
    nemo_fields,
    normal_form,
)

SIZES = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 8}
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
    ],
    ids=["4.43", "old", "5"],
)
def test_all_spellings_of_llama3_rope_mean_the_same(config):
    assert Rope().to_nemo(normal_form(config)) == {
        "rotary_base": 5e5,
        "seq_len_interpolation_factor": None,
        "scale_positional_embedding": True,
        "scale_factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "old_context_len": 8192,
    }


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ],
)
def test_rope_without_scaling_has_neither_kind(config):
    fields = Rope().to_nemo(normal_form(config))
    assert fields == {
        "rotary_base": 10000.0,
        "seq_len_interpolation_factor": None,
        "scale_positional_embedding": False,
    }


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({}, None),
        ({"seq_len_interpolation_factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "scale_positional_embedding": True,
                "scale_factor": 32.0,
                "seq_len_interpolation_factor": 8.0,
            },
            {"rope_type": "llama3", **LLAMA3},
        ),
    ],
    ids=["none", "linear", "llama3 wins over a second factor"],
)
def test_rope_scaling_goes_back(changes, scaling):
    fields = Rope().to_hf(Architecture(**SIZES, **changes, rotary_base=7e4))
    assert fields == {"rope_theta": 7e4, "rope_scaling": scaling}


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_other_rope_types_are_refused_by_name(kind):
    with pytest.raises(ContentError, match=f'"{kind}" \\(rope_scaling.rope_type\\)'):
        Rope().to_nemo(normal_form({"rope_scaling": {"type": kind, "factor": 2.0}}))


def test_a_scaling_without_its_number_is_refused():
    broken = {name: value for name, value in LLAMA3.items() if name != "low_freq_factor"}
    config = normal_form({"rope_scaling": {"rope_type": "llama3", **broken}})
    with pytest.raises(ContentError, match="low_freq_factor"):
        Rope().to_nemo(config)


def test_rope_that_differs_between_layers_is_refused():
    with pytest.raises(ContentError, match="different kinds of layers"):
        normal_form({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}})


def test_both_names_of_the_dtype_are_read():
    assert normal_form({"dtype": "bfloat16"})["torch_dtype"] == "bfloat16"
    assert normal_form({"torch_dtype": "float16"})["torch_dtype"] == "float16"


@pytest.mark.parametrize(
    ("hf", "nemo"),
    [
        ({}, {"num_query_groups": 8, "kv_channels": None}),
        ({"num_key_value_heads": 2}, {"num_query_groups": 2, "kv_channels": None}),
        ({"head_dim": 8}, {"num_query_groups": 8, "kv_channels": None}),
        ({"head_dim": 32}, {"num_query_groups": 8, "kv_channels": 32}),
    ],
)
def test_heads_are_written_only_where_they_are_not_the_default(hf, nemo):
    assert Heads().to_nemo({"num_attention_heads": 8, "hidden_size": 64, **hf}) == nemo
    back = Heads().to_hf(Architecture(**SIZES, **nemo))
    assert back["num_key_value_heads"] == hf.get("num_key_value_heads", 8)
    assert back["head_dim"] == hf.get("head_dim", 8)


def test_a_length_shortened_for_fine_tuning_does_not_shorten_the_model():
    arch = Architecture(**SIZES, encoder_seq_length=256, max_position_embeddings=2048)
    assert Positions().to_hf(arch) == {"max_position_embeddings": 2048}
    assert Positions().to_nemo({"max_position_embeddings": 2048}) == {
        "encoder_seq_length": 2048,
        "max_position_embeddings": 2048,
    }


def test_a_required_field_that_is_absent_is_named():
    with pytest.raises(ContentError, match="no intermediate_size"):
        Field("ffn_hidden_size", "intermediate_size").to_nemo({})


def test_an_unknown_choice_is_refused_with_what_is_known():
    rule = Choice("activation", "hidden_act", {"fast-swiglu": "silu"}, "silu")
    assert rule.to_nemo({}) == {"activation": "fast-swiglu"}
    with pytest.raises(ContentError, match=r'hidden_act "gelu".*knows silu'):
        rule.to_nemo({"hidden_act": "gelu"})


def test_two_fields_that_contradict_each_other_are_both_named():
    rules = (Field("bias", "attention_bias", False), Field("bias", "mlp_bias", False))
    assert nemo_fields(rules, {"attention_bias": True, "mlp_bias": True}) == {"bias": True}
    with pytest.raises(ContentError, match="attention_bias True but mlp_bias False"):
        nemo_fields(rules, {"attention_bias": True})


def test_rules_write_every_field_of_config_json():
    rules = (Field("num_layers", "num_hidden_layers"), Heads())
    assert hf_fields(rules, Architecture(**SIZES)) == {
        "num_hidden_layers": 2,
        "num_key_value_heads": 8,
        "head_dim": 8,
    }


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"rope_scaling": "linear"}, "rope_scaling 'linear', which is no mapping"),
        ({"rope_scaling": {"rope_type": []}}, "rope type"),
        ({"hidden_size": 64, "num_attention_heads": {}, "head_dim": 4}, "no model has"),
        ({"hidden_size": 64}, "no model has"),
    ],
)
def test_values_of_another_kind_are_refused_in_a_sentence(config, match):
    with pytest.raises(ContentError, match=match):
        nemo_fields((Rope(), Heads()), config)
