"""Families are found by listing the package and recognised from either configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

import nemoalign.families
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.families.registry import (
    families,
    family_for_hf,
    family_for_nemo,
    nearest_family,
)

FOLDER = Path(nemoalign.families.__path__[0])
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in {"__init__", "registry"})
GPT = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 12, "num_attention_heads": 2}
LLAMA = GPT | {
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "bias": False,
    "position_embedding_type": "rope",
}
# As NeMo's own configurations and converters leave them.
GEMMA = {"activation": "geglu", "openai_gelu": True, "apply_embedding_scaling": True}
NEMOTRON = {
    "normalization": "layernorm1p",
    "activation": "squared-relu",
    "rotary_percentage": 0.5,
    "bias": False,
}
GPT2 = {
    "normalization": "layernorm",
    "activation": "gelu",
    "bias": True,
    "position_embedding_type": "learned_absolute",
}
FALCON = {
    "name": "megatron_falcon_gpt",
    "normalization": "layernorm",
    "activation": "gelu",
    "bias": False,
    "mcore_customization_config": {"new_decoder_architecture": False, "parallel_attention": True},
}
STARCODER2 = {"normalization": "layernorm", "activation": "gelu", "bias": True}


def test_every_file_of_the_package_is_a_family():
    others = {"vit"}  # no language models
    assert {family.name for family in families()} == {path.stem for path in FILES} - others


def test_hf_configs_are_found_by_architecture_or_model_type():
    assert family_for_hf({"architectures": ["LlamaForCausalLM"]}).name == "llama"
    assert family_for_hf({"model_type": "llama"}).name == "llama"


def test_an_unknown_hf_model_is_named_with_the_known_ones():
    with pytest.raises(ContentError, match=r"BertModel.*LlamaForCausalLM"):
        family_for_hf({"architectures": ["BertModel"], "model_type": "llama"})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "llama"),
        ({"activation": "fast-swiglu"}, "llama"),
        ({"bias": True}, "llama"),
        (GEMMA, "gemma"),
        (GEMMA | {"layernorm_zero_centered_gamma": True}, "gemma"),
        (GEMMA | {"activation": "fast-geglu", "num_query_groups": 1, "kv_channels": 256}, "gemma"),
        (GEMMA | {"bias_activation_fusion": False}, "gemma"),
        (GEMMA | {"openai_gelu": False, "bias_activation_fusion": False}, "gpt"),
        (GEMMA | {"apply_embedding_scaling": False}, "gpt"),
        (NEMOTRON, "nemotron"),
        (NEMOTRON | {"rotary_percentage": 1.0, "kv_channels": 128}, "nemotron"),
        (NEMOTRON | {"normalization": "layernorm"}, "gpt"),
        (NEMOTRON | {"activation": "fast-swiglu"}, "gpt"),
        (GPT2, "gpt2"),
        (GPT2 | {"openai_gelu": True, "share_embeddings_and_output_weights": False}, "gpt2"),
        (GPT2 | {"num_query_groups": 2}, "gpt2"),
        (GPT2 | {"num_query_groups": 1}, "gpt"),
        (GPT2 | {"kv_channels": 8}, "gpt"),
        (STARCODER2, "starcoder2"),
        (STARCODER2 | {"window_size": [4096, 0], "num_query_groups": 1}, "starcoder2"),
        (STARCODER2 | {"window_size": [None, 0], "bias": False}, "starcoder2"),
        (STARCODER2 | {"rotary_percentage": 0.5}, "gpt"),
        (FALCON, "falcon"),
        (FALCON | {"num_query_groups": 1, "bias": False}, "falcon"),
        (FALCON | {"rotary_percentage": 0.5}, "gpt"),
        ({"name": "megatron_falcon_gpt"}, "gpt"),
        ({"name": "te_gpt"}, "llama"),
        ({"activation": "gelu"}, "gpt"),
        ({"normalization": "layernorm"}, "gpt"),
        ({"rotary_percentage": 0.5}, "gpt"),
        ({"openai_gelu": True}, "gpt"),
        ({"window_size": [128, 0]}, "mistral"),
        ({"window_size": [128, 0], "bias": True}, "gpt"),
        ({"window_size": [-1, -1]}, "llama"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "window_size": [128, 0]}, "qwen2"),
        ({"qkv_bias": True, "bias": True}, "gpt"),
        ({"qk_layernorm": True}, "qwen3"),
        ({"qk_layernorm": True, "qkv_bias": True}, "gpt"),
    ],
)
def test_nemo_configs_are_recognised_by_what_the_family_fixes(changes, name):
    assert family_for_nemo(LLAMA | changes).name == name


def test_the_config_json_an_archive_keeps_decides_between_families_that_nemo_spells_alike():
    kept = {"architectures": ["MistralForCausalLM"]}
    assert family_for_nemo(LLAMA).name == "llama"
    assert family_for_nemo(LLAMA, kept).name == "mistral"


def test_the_config_json_an_archive_keeps_cannot_override_the_architecture():
    kept = {"architectures": ["LlamaForCausalLM"]}
    assert family_for_nemo(LLAMA, kept).name == "llama"
    assert family_for_nemo(GPT, kept).name == "gpt2"


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"rotary_percentage": 0.5}, "llama", ["rotary_percentage: 0.5"]),
        ({"num_moe_experts": 4, "bias": True}, "mixtral", ["bias: True"]),
        (GPT2 | {"num_query_groups": 1}, "gpt2", ["heads_per_group: 2"]),
        (GPT2 | {"bias": False}, "gpt2", ["bias: False"]),
    ],
)
def test_the_nearest_family_says_what_differs(changes, name, words):
    family, differences = nearest_family(Architecture.from_nemo(LLAMA | changes))
    assert family.name == name
    assert differences == words
