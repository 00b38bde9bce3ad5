"""Gemma 1: llama's tensors with gamma kept minus one, wide heads, and a scaled, tied embedding."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.families.llama import ROTARY, SIZES
from nemoalign.weights.activation_rules import Gelu
from nemoalign.weights.config_rules import Field, Heads, Only, Positions, Rope
from nemoalign.weights.gamma_ops import CenterGamma
from nemoalign.weights.rules import Family, WeightRule

# What both generations of Gemma have in common.
SCALED = ROTARY | {
    "normalization": ("rmsnorm",),
    "layernorm_zero_centered_gamma": (True, False),
    "activation": ("fast-geglu", "geglu"),
    "bias": (False,),
    "qkv_bias": (False,),
    "apply_embedding_scaling": (True,),
    "num_moe_experts": (None,),
}

FAMILY = Family(
    name="gemma",
    hf_architectures=("GemmaForCausalLM",),
    hf_model_type="gemma",
    weights=(
        *LLAMA.weights,
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight",
            "model.layers.{i}.input_layernorm.weight",
            CenterGamma(),
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight",
            "model.layers.{i}.post_attention_layernorm.weight",
            CenterGamma(),
        ),
        WeightRule("decoder.final_layernorm.weight", "model.norm.weight", CenterGamma()),
    ),
    config=(
        *SIZES,
        Heads(groups=16, width=256),
        Positions(),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        Gelu(
            "hidden_act",
            {
                "gelu_pytorch_tanh": ("fast-geglu", True),
                "gelu": ("fast-geglu", True),
                "gelu_new": ("fast-geglu", True),
            },
            "gelu_pytorch_tanh",
        ),
        Only("attention_bias", False),
        Only("use_bidirectional_attention", False),
        Field("layernorm_epsilon", "rms_norm_eps", 1e-6),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", True),
    ),
    fixed=SCALED
    | {
        "window_size": (None,),
    },
    facts={"gelu_is_tanh": (True,)},
    ignored_hf=LLAMA.ignored_hf,
)
