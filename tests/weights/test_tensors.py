"""The table of tensors against what megatron-core's own GPTModel has."""

from __future__ import annotations

import pytest

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.names import pattern_of
from nemoalign.weights.splits import COLUMNS, GATED_ROWS, REPLICATED, ROWS
from nemoalign.weights.tensors import SPLITS, expected_shapes, parts_of, split_of

SIZES = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 12, "num_attention_heads": 4}


def test_a_plain_nemo_gpt_has_biases_positions_and_a_tied_head():
    """Shapes written out by hand from the format's table of keys."""
    arch = Architecture(**SIZES, num_query_groups=2, kv_channels=3, encoder_seq_length=16)
    shapes = expected_shapes(arch, vocab_rows=32)
    assert len(shapes) == 2 + 2 * 12 + 2
    assert shapes["embedding.word_embeddings.weight"] == (32, 8)
    assert shapes["embedding.position_embeddings.weight"] == (16, 8)
    layer = {name[17:]: shape for name, shape in shapes.items() if name[:17] == "decoder.layers.1."}
    assert layer == {
        "self_attention.linear_qkv.layer_norm_weight": (8,),
        "self_attention.linear_qkv.layer_norm_bias": (8,),
        "self_attention.linear_qkv.weight": ((4 + 2 * 2) * 3, 8),
        "self_attention.linear_qkv.bias": ((4 + 2 * 2) * 3,),
        "self_attention.linear_proj.weight": (8, 4 * 3),
        "self_attention.linear_proj.bias": (8,),
        "mlp.linear_fc1.layer_norm_weight": (8,),
        "mlp.linear_fc1.layer_norm_bias": (8,),
        "mlp.linear_fc1.weight": (12, 8),
        "mlp.linear_fc1.bias": (12,),
        "mlp.linear_fc2.weight": (8, 12),
        "mlp.linear_fc2.bias": (8,),
    }
    assert "output_layer.weight" not in shapes


def test_a_llama_has_neither_biases_nor_positions_and_a_doubled_fc1():
    arch = Architecture(
        **SIZES,
        normalization="rmsnorm",
        activation="fast-swiglu",
        bias=False,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )
    shapes = expected_shapes(arch, vocab_rows=32)
    assert len(shapes) == 1 + 2 * 6 + 2
    assert shapes["decoder.layers.0.mlp.linear_fc1.weight"] == (24, 8)
    assert shapes["output_layer.weight"] == (32, 8)


def test_tensors_come_in_the_order_of_the_model():
    names = list(expected_shapes(Architecture(**SIZES), 32))
    layers = [int(name.split(".")[2]) for name in names if name.startswith("decoder.layers")]
    assert names[0] == "embedding.word_embeddings.weight"
    assert layers == sorted(layers)
    assert names[-1].startswith("decoder.final_layernorm")


def test_every_tensor_has_a_part_and_a_cut():
    arch = Architecture(**SIZES, qk_layernorm=True)
    for name in expected_shapes(arch, 32):
        assert pattern_of(name) in SPLITS
        assert parts_of(arch)[pattern_of(name)] in {
            "embedding",
            "attention",
            "mlp",
            "norms",
            "head",
        }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("embedding.word_embeddings.weight", ROWS),
        ("decoder.layers.7.self_attention.linear_qkv.bias", ROWS),
        ("decoder.layers.7.self_attention.linear_proj.weight", COLUMNS),
        ("decoder.layers.7.mlp.linear_fc2.bias", REPLICATED),
        ("decoder.layers.0.mlp.adapter_layer.lora_hto4h_adapter.linear_out.weight", GATED_ROWS),
        ("decoder.layers.0.mlp.adapter_layer.lora_4htoh_adapter.linear_in.weight", COLUMNS),
    ],
)
def test_cuts_follow_the_column_and_row_parallel_layers(name, split):
    assert split_of(name, Architecture(**SIZES, activation="swiglu")) == split


def test_fc1_without_a_gate_is_cut_in_one_run():
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    assert split_of(name, Architecture(**SIZES, activation="gelu")) == ROWS
    assert split_of(name, Architecture(**SIZES, activation="fast-swiglu")) == GATED_ROWS


def test_a_name_without_a_cut_is_named():
    with pytest.raises(ContentError, match=r"mlp\.gate\.weight"):
        split_of("decoder.layers.0.mlp.gate.weight", Architecture(**SIZES))


def test_experts_take_the_place_of_the_mlp_and_have_a_router_and_a_norm():
    arch = Architecture(
        **SIZES, num_moe_experts=3, moe_ffn_hidden_size=5, activation="swiglu", bias=False
    )
    shapes = expected_shapes(arch, 32)
    mlp = {
        name[17:]: shape
        for name, shape in shapes.items()
        if name.startswith("decoder.layers.1.") and "attention" not in name
    }
    experts = {
        f"mlp.experts.local_experts.{e}.linear_{fc}.weight": shape
        for e in range(3)
        for fc, shape in (("fc1", (10, 8)), ("fc2", (8, 5)))
    }
    norm = {"pre_mlp_layernorm.weight": (8,), "pre_mlp_layernorm.bias": (8,)}
    assert mlp == norm | {"mlp.router.weight": (3, 8)} | experts
    fc1 = "decoder.layers.1.mlp.experts.local_experts.2.linear_fc1.weight"
    assert split_of(fc1, arch) == GATED_ROWS
    assert split_of("decoder.layers.1.mlp.router.weight", arch) == REPLICATED
