"""NeMo 2's fields and NeMo's, both ways; expected values are what the two projects' classes state."""

from __future__ import annotations

import pytest

from nemoalign.checkpoint.settings.nemo2_config import nemo2_fields, nemo_fields
from nemoalign.checkpoint.settings.values import read_architecture
from nemoalign.errors import ContentError

SIZES = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 4}


def nemo(cls="GPTConfig", **config):
    return nemo_fields({"config": {"_target_": f"a.{cls}", **SIZES, **config}}, "model.yaml")


def function(path):
    return {"_target_": path, "_call_": False}


def test_what_nemo2_leaves_out_is_megatron_cores_default():
    fields = nemo()
    assert fields["ffn_hidden_size"] == 64
    assert fields["normalization"] == "layernorm"
    assert fields["activation"] == "gelu"
    assert fields["bias"] is True
    assert fields["bias_activation_fusion"] is False
    assert fields["encoder_seq_length"] == 1024
    assert fields["position_embedding_type"] == "learned_absolute"


def test_llama_3_1_scales_its_positions_and_llama_3_does_not():
    silu = {"activation_func": function("torch.nn.functional.silu"), "gated_linear_unit": True}
    scaled = nemo("Llama31Config8B", scale_factor=8.0, old_context_len=8192, **silu)
    assert scaled["scale_positional_embedding"] is True
    assert scaled["old_context_len"] == 8192
    assert scaled["activation"] == "fast-swiglu"
    assert "scale_positional_embedding" not in nemo("Llama3Config8B", **silu)


def test_gemma_scales_its_embedding_which_only_its_class_says():
    tanh = function("nemo.collections.llm.fn.activation.openai_gelu")
    gemma = nemo("GemmaConfig2B", activation_func=tanh, gated_linear_unit=True)
    assert gemma["apply_embedding_scaling"] is True
    assert (gemma["activation"], gemma["openai_gelu"]) == ("geglu", True)


def test_gamma_minus_one_is_a_norm_of_its_own_for_layernorm_only():
    assert nemo(layernorm_zero_centered_gamma=True)["normalization"] == "layernorm1p"
    both = nemo(normalization="RMSNorm", layernorm_zero_centered_gamma=True)
    assert (both["normalization"], both["layernorm_zero_centered_gamma"]) == ("rmsnorm", True)


def test_softcaps_are_where_nemo_looks_for_them():
    fields = nemo(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    assert fields["mcore_customization_config"] == {
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_layers": None}, "does not state num_layers"),
        ({"multi_latent_attention": True}, "has multi_latent_attention True"),
        ({"normalization": "L2Norm"}, "has normalization 'L2Norm'"),
        ({"activation_func": function("os.system")}, "activation_func 'system' without a gate"),
        ({"activation_func": function("torch.nn.functional.silu")}, "silu. without a gate"),
    ],
)
def test_what_a_nemo_archive_cannot_describe_is_refused(config, words):
    with pytest.raises(ContentError, match=words):
        nemo(**config)


@pytest.mark.parametrize(
    "config",
    [
        {
            "activation": "fast-swiglu",
            "normalization": "rmsnorm",
            "bias": False,
            "num_query_groups": 2,
        },
        {"activation": "squared-relu", "normalization": "layernorm1p", "rotary_percentage": 0.5},
        {"activation": "geglu", "openai_gelu": True, "kv_channels": 8, "window_size": [7, 0]},
        {"activation": "gelu", "position_embedding_type": "rope", "rotary_base": 5e5},
        {"activation": "reglu", "scale_positional_embedding": True, "scale_factor": 32.0},
        {"activation": "approx-gelu", "override_vocab_size": 48, "qk_layernorm": True},
    ],
)
def test_there_and_back_is_the_same_architecture(config):
    whole = {**SIZES, "ffn_hidden_size": 24, "encoder_seq_length": 32, **config}
    whole["max_position_embeddings"] = 32
    arch = read_architecture(whole, "model_config.yaml")
    again = nemo_fields({"config": nemo2_fields(whole, arch, "a")}, "model.yaml")
    assert read_architecture(again, "again") == arch


@pytest.mark.parametrize(
    "config", [{"activation": "swish"}, {"normalization": "low_precision_layernorm"}]
)
def test_what_nemo2_does_not_have_is_refused(config):
    whole = {**SIZES, "ffn_hidden_size": 24, **config}
    with pytest.raises(ContentError, match="which NeMo 2 has not"):
        nemo2_fields(whole, read_architecture(whole, "a"), "m.nemo")
