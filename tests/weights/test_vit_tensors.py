"""The table of a ViT's tensors, against NeMo's own file and against slices made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError
from nemoalign.weights.splits import COLUMNS, REPLICATED, ROWS
from nemoalign.weights.vit_tensors import vit_pattern, vit_rows, vit_shapes, vit_split
from tests.checkpoint.vits import fixture_config, fixture_state

ARCH = VitArchitecture.from_nemo(fixture_config())
QKV = "backbone.transformer.layers.1.self_attention.query_key_value.weight"


def test_names_and_shapes_are_those_nemo_wrote():
    written = {name: tuple(tensor.shape) for name, tensor in fixture_state().items()}
    assert vit_shapes(ARCH) == written


@pytest.mark.parametrize(
    ("changes", "name", "shape"),
    [
        ({"generation": 2}, "backbone.conv1.weight", (64, 3, 4, 4)),
        ({"class_token_length": 8}, "backbone.cls_token", (1, 8, 64)),
        ({"class_token_length": 8}, "backbone.position_embeddings.weight", (24, 64)),
        (
            {"position_embedding_type": "learned_parameters"},
            "backbone.position_embeddings",
            (17, 64),
        ),
        ({"preprocess_layernorm": True}, "backbone.preprocess_layernorm.bias", (64,)),
        ({"layerscale": True}, "backbone.transformer.layers.0.post_mlp_layerscale.gamma", (64,)),
        ({"finetune": False}, "head.dense_out.weight", (10, 64)),
        (
            {"activation": "fast-geglu"},
            "backbone.transformer.layers.0.mlp.dense_h_to_4h.bias",
            (256,),
        ),
        ({"activation": "geglu"}, "backbone.transformer.layers.0.mlp.dense_h_to_4h_2.bias", (128,)),
        ({"kv_channels": 32}, QKV, (384, 64)),
    ],
)
def test_a_setting_changes_the_tensors_as_nemo_builds_them(changes, name, shape):
    assert vit_shapes(replace(ARCH, **changes))[name] == shape


def test_rmsnorm_has_no_biases():
    names = vit_shapes(replace(ARCH, normalization="rmsnorm", preprocess_layernorm=True))
    assert [name for name in names if "layernorm.bias" in name] == []


def test_only_the_four_parallel_layers_are_cut():
    cuts = {vit_pattern(name): row.split for name, row in vit_rows(ARCH).items()}
    layer = "backbone.transformer.layers.{i}."
    assert {name: cut for name, cut in cuts.items() if cut != REPLICATED} == {
        f"{layer}self_attention.query_key_value.weight": ROWS,
        f"{layer}self_attention.query_key_value.bias": ROWS,
        f"{layer}self_attention.dense.weight": COLUMNS,
        f"{layer}mlp.dense_h_to_4h.weight": ROWS,
        f"{layer}mlp.dense_h_to_4h.bias": ROWS,
        f"{layer}mlp.dense_4h_to_h.weight": COLUMNS,
    }


def test_a_legacy_rank_holds_its_heads_of_each_of_the_three():
    heads, width = 4, 16
    whole = np.arange(3 * heads * width).reshape(3, heads, width)
    ranks = [whole[:, :2].reshape(-1), whole[:, 2:].reshape(-1)]
    split = vit_split(QKV, replace(ARCH, megatron_legacy=True))
    assert np.array_equal(split.join(ranks), whole.reshape(-1))


def test_an_unknown_name_has_no_cut():
    with pytest.raises(ContentError, match=r"head\.wheel"):
        vit_split("head.wheel", ARCH)
