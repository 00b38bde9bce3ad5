"""Falcon's switches: which of Hugging Face's names is which of NeMo's layers."""

from __future__ import annotations

import pytest

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.falcon_rules import FalconShape
from tests.weights.test_ops import architecture

SIZES = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 32, "num_attention_heads": 4}


def nemo(bias=False, groups=4, **switches) -> Architecture:
    config = {"name": "megatron_falcon_gpt", "mcore_customization_config": switches, "bias": bias}
    return Architecture.from_nemo(SIZES | config | {"num_query_groups": groups})


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    "switches",
    [
        {"parallel_attention": True},
        {"parallel_attention": True, "new_decoder_architecture": True},
        {"new_decoder_architecture": True, "parallel_attention": False},
    ],
)
def test_every_parallel_layer_comes_back_as_the_same_computation(switches, groups):
    arch = nemo(groups=groups, **switches)
    written = FalconShape().to_hf(arch) | {"num_attention_heads": 4}
    again = Architecture.from_nemo(SIZES | {"bias": False} | FalconShape().to_nemo(written))
    assert again.query_groups == groups
    assert again.has_mlp_norm == arch.has_mlp_norm
    assert again.new_decoder_architecture == arch.new_decoder_architecture


def test_only_falcons_layer_shares_a_norm():
    assert not nemo(parallel_attention=True).has_mlp_norm
    assert nemo().has_mlp_norm
    assert architecture(parallel_attention=True).has_mlp_norm


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (nemo(bias=True, parallel_attention=True), "leaves the biases away"),
        (nemo(groups=2), "2 query groups in a Falcon whose MLP follows attention"),
    ],
)
def test_what_hugging_face_does_not_have_is_refused(arch, words):
    with pytest.raises(ContentError, match=words):
        FalconShape().to_hf(arch)
