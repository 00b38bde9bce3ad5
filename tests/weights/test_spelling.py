"""Canonical names and keys on disk are each other's inverse, in every spelling."""

import pytest

from nemoalign.config.architecture import Architecture
from nemoalign.weights.names import canonical_name
from nemoalign.weights.spelling import LAYERS, Spelling, spelling_of
from nemoalign.weights.tensors import ADAPTER_SPLITS, expected_shapes

ARCH = Architecture(
    num_layers=12,
    hidden_size=8,
    ffn_hidden_size=8,
    num_attention_heads=2,
    share_embeddings_and_output_weights=False,
)
NAMES = list(expected_shapes(ARCH, 8))
ADAPTERS = [name.replace("{i}", "11") for name in ADAPTER_SPLITS]
SPELLINGS = [Spelling(layers) for layers in LAYERS if layers != "legacy"]
SPELLINGS += [Spelling("legacy", legacy=True), Spelling("whole", legacy=True)]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_a_key_is_read_as_the_name_it_was_made_of(spelling):
    keys = [key for name in NAMES for key in spelling.keys(name)]
    assert len(set(keys)) == len(NAMES)
    assert [canonical_name(key) for key in keys] == NAMES
    assert spelling_of(keys) == spelling
    assert [canonical_name(key) for name in ADAPTERS for key in spelling.keys(name)] == ADAPTERS


def test_layers_are_counted_from_the_first_of_the_stage():
    name = "decoder.layers.11.self_attention.linear_qkv.layer_norm_bias"
    assert Spelling().keys(name, 10) == (f"model.{name.replace('11', '1')}",)
    assert Spelling("local").keys(name, 10) == ("model.decoder.layers.1.input_layernorm.bias",)


def test_gate_and_up_may_be_apart():
    """Names that NeMo v1.20 gave a swiglu, and a fast-swiglu has as one."""
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    apart = Spelling("legacy", legacy=True, separate_gate=True)
    keys = apart.keys(name, 2)
    assert keys == (
        "model.language_model.encoder.layers.1.mlp.dense_h_to_4h.weight",
        "model.language_model.encoder.layers.1.mlp.dense_h_to_4h_2.weight",
    )
    assert spelling_of(keys) == apart
    norm = "decoder.layers.3.mlp.linear_fc1.layer_norm_weight"
    assert apart.keys(norm) == (
        "model.language_model.encoder.layers.3.post_attention_layernorm.weight",
    )


def test_experts_keep_their_names_or_those_of_grouped_layers():
    name = "decoder.layers.3.mlp.experts.local_experts.11.linear_fc1.weight"
    assert Spelling().keys(name, 2) == (f"model.{name.replace('3', '1')}",)
    grouped = Spelling(grouped_experts=True)
    assert grouped.keys(name, 2) == ("model.decoder.layers.1.mlp.experts.linear_fc1.weight11",)
    assert canonical_name(grouped.keys(name)[0], has_experts=True) == name
    assert spelling_of(grouped.keys(name)) == grouped
    norm = "decoder.layers.0.pre_mlp_layernorm.weight"
    assert spelling_of([*Spelling().keys(name), *Spelling().keys(norm)]) == Spelling()
    local = Spelling("local")
    assert local.keys(norm) == (f"model.{norm}",)


def test_the_copy_of_tied_embeddings_has_a_name_of_its_own():
    assert Spelling().tied_copy == "model.output_layer.weight"
    assert Spelling("legacy", legacy=True).tied_copy == "model.word_embeddings.weight"
