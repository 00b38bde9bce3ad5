"""The settings of a converted ViT hold every key NeMo asks for."""

import pytest

from nemoalign.checkpoint.vit.nemo_config import image_sides, num_labels, vit_nemo_config
from nemoalign.errors import ContentError
from nemoalign.families.vit import FAMILY
from tests.checkpoint.vits import fixture_config

READ_BY_ATTRIBUTE = {
    "img_h",
    "img_w",
    "patch_dim",
    "num_channels",
    "num_classes",
    "drop_path_rate",
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "kv_channels",
    "hidden_dropout",
    "attention_dropout",
    "normalization",
    "layernorm_epsilon",
    "persist_layer_norm",
    "openai_gelu",
    "bias_activation_fusion",
    "onnx_safe",
    "megatron_legacy",
    "masked_softmax_fusion",
    "fp32_residual_connection",
    "fp16_lm_cross_entropy",
    "init_method_std",
    "use_scaled_init_method",
    "apply_query_key_layer_scaling",
    "activations_checkpoint_method",
    "activations_checkpoint_num_layers",
    "activations_checkpoint_granularity",
    "precision",
    "optim",
    "target",
}
"""What VitBackbone, VitClassificationModel and their base class take from the configuration."""


def test_every_key_that_nemo_reads_is_there():
    config = vit_nemo_config(FAMILY, {})
    assert READ_BY_ATTRIBUTE - config.keys() == set()
    missing = fixture_config().keys() - config.keys()
    assert missing == {"encoder_seq_length", "max_position_embeddings"}  # of the images' size
    assert config["target"] == fixture_config()["target"]


def test_an_empty_config_json_is_transformers_default_model():
    config = vit_nemo_config(FAMILY, {})
    sizes = [config[n] for n in ("hidden_size", "num_layers", "patch_dim", "img_h", "num_classes")]
    assert sizes == [768, 12, 16, 224, 2]
    assert config["layernorm_epsilon"] == 1e-12


@pytest.mark.parametrize(
    ("act", "activation", "openai"),
    [
        ("gelu", "gelu", False),
        ("gelu_new", "gelu", True),
        ("gelu_pytorch_tanh", "gelu", True),
        ("quick_gelu", "approx-gelu", False),
    ],
)
def test_the_activation_is_spelled_as_nemo_decides_it(act, activation, openai):
    config = vit_nemo_config(FAMILY, {"hidden_act": act})
    assert (config["activation"], config["openai_gelu"]) == (activation, openai)
    assert config["bias_activation_fusion"] is False


def test_sides_and_labels_are_read_in_every_spelling():
    assert image_sides({"image_size": 32}) == (32, 32)
    assert image_sides({"image_size": [32, 16]}) == (32, 16)
    assert num_labels({"id2label": {"0": "a", "1": "b", "2": "c"}}) == 3
    assert num_labels({"num_labels": 7}) == 7
    for wrong in ({"image_size": [1, 2, 3]}, {"image_size": True}, {"image_size": 0}):
        with pytest.raises(ContentError, match="image_size"):
            image_sides(wrong)
