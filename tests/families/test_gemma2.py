"""Gemma 2 to a ``.nemo`` and back, spelled as NeMo's own converter spells it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.open import open_source
from nemoalign.families.registry import family_for_nemo
from nemoalign.log import PlainReporter
from tests.checkpoint.models import assert_same_tensors

QUIET = PlainReporter(quiet=True)


def save_gemma2(folder: Path) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=64,
        sliding_window=6,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        max_position_embeddings=64,
    )
    model = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gemma2") / "hf"
    save_gemma2(folder)
    return folder


def test_the_way_there_and_back_keeps_every_bit_and_the_config(gemma2, tmp_path):
    convert(gemma2, tmp_path / "m.nemo", reporter=QUIET)
    convert(tmp_path / "m.nemo", tmp_path / "hf", reporter=QUIET)
    assert_same_tensors(tmp_path / "hf", gemma2)
    assert (tmp_path / "hf/config.json").read_text() == (gemma2 / "config.json").read_text()


def test_the_configuration_is_spelled_as_nemo_spells_it(gemma2, tmp_path):
    convert(gemma2, tmp_path / "m.nemo", reporter=QUIET)
    config = open_source(tmp_path / "m.nemo").config
    assert config["name"] == "megatron_gemma2"
    assert config["layernorm_zero_centered_gamma"] is True
    assert config["mcore_customization_config"] == {
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 24,
    }
    assert config["window_size"] == [5, 0]
    assert config["kv_channels"] == 16
    assert family_for_nemo(config).name == "gemma2"


def test_norms_behind_layers_have_nemos_keys_and_values(gemma2):
    source = open_source(gemma2)
    theirs = Gemma2ForCausalLM.from_pretrained(gemma2).state_dict()
    for ours, hf in (
        ("self_attention.linear_proj.post_layernorm.weight", "post_attention_layernorm"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_feedforward_layernorm"),
        ("mlp.linear_fc2.post_layernorm.weight", "post_feedforward_layernorm"),
    ):
        found = torch.tensor(source.weights.read(f"decoder.layers.2.{ours}"))
        assert torch.equal(found, theirs[f"model.layers.2.{hf}.weight"])
