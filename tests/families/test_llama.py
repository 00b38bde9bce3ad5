"""The llama table against transformers: its tensors, its configuration and its own arithmetic."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.families.llama import FAMILY
from nemoalign.weights.config_rules import hf_fields, nemo_fields
from nemoalign.weights.rules import tensor_plans
from nemoalign.weights.tensors import expected_shapes

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "gqa": {"num_key_value_heads": 2},
    "mha, tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 24},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_parameters": LLAMA3, "max_position_embeddings": 512},
    "linear rope": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        "rms_norm_eps": 1e-5,
    },
}


def hf_config(**changes) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=61,
        architectures=["LlamaForCausalLM"],
        **changes,
    )


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_the_table_covers_exactly_the_tensors_transformers_has(changes):
    config = hf_config(**changes)
    arch = Architecture.from_nemo(
        {name: fixed[0] for name, fixed in FAMILY.fixed.items()}
        | nemo_fields(FAMILY.config, config.to_dict())
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    shapes = expected_shapes(arch, vocab_rows=64)
    ours: dict[str, tuple[int, ...]] = {}
    for plan in tensor_plans(FAMILY, arch):
        parts = plan.op.hf_shapes(shapes[plan.name], arch, 61)
        ours.update(zip(plan.hf_names, parts, strict=True))
        zeros = [np.zeros(part, np.float32) for part in parts]
        if "embed" not in plan.name and "output" not in plan.name:
            assert plan.op.to_megatron(zeros, arch).shape == shapes[plan.name]
    assert ours == expected


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("spelling", ["4", "5"])
def test_a_config_comes_back_as_transformers_understands_it(changes, spelling, tmp_path):
    config = hf_config(**changes)
    written = config.to_dict()
    if spelling == "4":
        rope = dict(written.pop("rope_parameters"))
        written["rope_theta"] = rope.pop("rope_theta")
        written["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    fields = nemo_fields(FAMILY.config, written)
    arch = Architecture.from_nemo({n: fixed[0] for n, fixed in FAMILY.fixed.items()} | fields)
    back = {"model_type": "llama", "vocab_size": 61, **hf_fields(FAMILY.config, arch)}
    (tmp_path / "config.json").write_text(json.dumps(back))
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    for name in written.keys() - {"rope_theta", "rope_scaling", "architectures", "_name_or_path"}:
        assert again[name] == config.to_dict()[name], name
    assert again["rope_parameters"] == config.to_dict()["rope_parameters"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling"),
    ],
)
def test_what_a_nemo_cannot_represent_is_refused_by_field(changes, field):
    with pytest.raises(ContentError, match=field):
        nemo_fields(FAMILY.config, hf_config().to_dict() | changes)
