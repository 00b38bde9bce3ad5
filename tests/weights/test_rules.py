"""What a family says about an architecture, and the plan that follows for its tensors."""

from __future__ import annotations

import pytest

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.ops import Copy, FuseQKV, PadVocab
from nemoalign.weights.rules import Family, WeightRule, tensor_plans

ARCH = Architecture(
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=12,
    num_attention_heads=2,
    normalization="RMSNorm",
    bias=False,
    position_embedding_type="rope",
)
QKV = "decoder.layers.{i}.self_attention.linear_qkv."
RULES = (
    WeightRule("embedding.word_embeddings.weight", "wte", PadVocab()),
    WeightRule(QKV + "layer_norm_weight", "h.{i}.norm"),
    WeightRule(QKV + "weight", ("h.{i}.q", "h.{i}.k", "h.{i}.v"), FuseQKV()),
    WeightRule("decoder.layers.{i}.self_attention.linear_proj.weight", "h.{i}.o"),
    WeightRule("decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight", "h.{i}.norm2"),
    WeightRule("decoder.layers.{i}.mlp.linear_fc1.weight", "h.{i}.up"),
    WeightRule("decoder.layers.{i}.mlp.linear_fc2.weight", "h.{i}.down"),
    WeightRule("decoder.final_layernorm.weight", "norm"),
    WeightRule("output_layer.weight", "head", PadVocab(), when="untied"),
)


def test_a_plan_names_every_tensor_of_every_layer_once():
    plans = tensor_plans(Family(name="toy", weights=RULES), ARCH)
    assert len(plans) == 1 + 2 * 6 + 1
    assert len({plan.name for plan in plans}) == len(plans)
    packed = next(plan for plan in plans if plan.name == QKV.replace("{i}", "1") + "weight")
    assert packed.hf_names == ("h.1.q", "h.1.k", "h.1.v")
    assert packed.op == FuseQKV()
    assert plans[-1].op == Copy()


def test_a_rule_applies_only_under_its_condition():
    untied = Architecture(**{**ARCH.__dict__, "share_embeddings_and_output_weights": False})
    family = Family(name="toy", weights=RULES)
    assert "output_layer.weight" not in [plan.name for plan in tensor_plans(family, ARCH)]
    assert "output_layer.weight" in [plan.name for plan in tensor_plans(family, untied)]


def test_a_tensor_without_a_rule_is_named():
    family = Family(name="toy", weights=RULES[:-2])
    with pytest.raises(ContentError, match=r"Family toy .*decoder\.final_layernorm\.weight"):
        tensor_plans(family, ARCH)


def test_differences_name_field_and_value_and_ignore_the_case_of_words():
    family = Family(name="toy", fixed={"normalization": ("rmsnorm",), "qkv_bias": (False,)})
    assert family.differences(ARCH) == []
    other = Architecture(**{**ARCH.__dict__, "qkv_bias": True, "normalization": "layernorm"})
    assert family.differences(other) == ["normalization: layernorm", "qkv_bias: True"]
