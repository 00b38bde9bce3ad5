"""The architecture of a ViT, from NeMo's own settings."""

import pytest

from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError

SIZES = {"num_layers": 12, "hidden_size": 768, "ffn_hidden_size": 3072, "num_attention_heads": 12}
EXAMPLE = SIZES | {"img_h": 224, "img_w": 224, "patch_dim": 16, "num_classes": 1000}


def test_the_documented_sequence_lengths_follow_from_eight_class_tokens():
    assert VitArchitecture.from_nemo(EXAMPLE).num_positions == 204
    assert VitArchitecture.from_nemo(EXAMPLE | {"patch_dim": 14}).num_positions == 264


def test_what_is_absent_or_null_has_nemos_defaults():
    arch = VitArchitecture.from_nemo(EXAMPLE | {"kv_channels": None, "class_token_length": None})
    assert (arch.class_token_length, arch.finetune, arch.head_dim) == (8, False, 64)
    assert (arch.normalization, arch.activation) == ("layernorm", "gelu")


def test_fused_bias_and_openai_both_mean_the_tanh_gelu():
    assert VitArchitecture.from_nemo(EXAMPLE | {"openai_gelu": True}).has_tanh_gelu
    assert VitArchitecture.from_nemo(EXAMPLE | {"bias_activation_fusion": True}).has_tanh_gelu
    assert not VitArchitecture.from_nemo(EXAMPLE).has_tanh_gelu


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_classes": None}, "needs num_classes"),
        ({"hidden_size": 7.5}, "hidden_size is 7.5"),
        ({"finetune": "yes"}, "finetune is 'yes'"),
        ({"activation": ["gelu"]}, "which is no word"),
        ({"layernorm_epsilon": {}}, "layernorm_epsilon is {}"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(changes, sentence):
    with pytest.raises(ContentError, match=sentence):
        VitArchitecture.from_nemo(EXAMPLE | changes)
