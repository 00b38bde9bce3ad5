"""Canonical names and keys on disk are each other's inverse."""

import pytest

from nemoalign.config.architecture import Architecture
from nemoalign.weights.names import canonical_name
from nemoalign.weights.spelling import Spelling, spelling_of
from nemoalign.weights.tensors import expected_shapes

ARCH = Architecture(
    num_layers=12,
    hidden_size=8,
    ffn_hidden_size=8,
    num_attention_heads=2,
    qk_layernorm=True,
    share_embeddings_and_output_weights=False,
)
NAMES = list(expected_shapes(ARCH, 8))


@pytest.mark.parametrize("spelling", [Spelling(), Spelling(fused_norms=False)])
def test_a_key_is_read_as_the_name_it_was_made_of(spelling):
    keys = [spelling.key(name) for name in NAMES]
    assert len(set(keys)) == len(NAMES)
    assert [canonical_name(key) for key in keys] == NAMES
    assert spelling_of(keys) == spelling


def test_layers_are_counted_from_the_first_of_the_stage():
    name = "decoder.layers.11.self_attention.linear_qkv.layer_norm_bias"
    assert Spelling().key(name, 10) == f"model.{name.replace('11', '1')}"
    local = Spelling(fused_norms=False).key(name, 10)
    assert local == "model.decoder.layers.1.input_layernorm.bias"


def test_the_copy_of_tied_embeddings_is_an_output_layer():
    assert Spelling().tied_copy == "model.output_layer.weight"
