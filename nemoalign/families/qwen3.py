"""Qwen 3 (dense): llama's tensors and a norm on every query and key head."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.families.llama import GATED_SILU, ROTARY, SILU, SIZES
from nemoalign.weights.config_rules import Field, Heads, Only, Positions, Rope
from nemoalign.weights.rules import Family, WeightRule
from nemoalign.weights.window_rules import LayerWindow

FAMILY = Family(
    name="qwen3",
    hf_architectures=("Qwen3ForCausalLM",),
    hf_model_type="qwen3",
    weights=(
        *LLAMA.weights,
        WeightRule(
            "decoder.layers.{i}.self_attention.q_layernorm.weight",
            "model.layers.{i}.self_attn.q_norm.weight",
            when="qk_layernorm",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.k_layernorm.weight",
            "model.layers.{i}.self_attn.k_norm.weight",
            when="qk_layernorm",
        ),
    ),
    config=(
        *SIZES,
        Heads(groups=32, width=128),
        Positions(),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        LayerWindow(),
        SILU,
        Only("attention_bias", False),
        Field("layernorm_epsilon", "rms_norm_eps", 1e-6),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", False),
    ),
    fixed=ROTARY
    | GATED_SILU
    | {
        "bias": (False,),
        "qkv_bias": (False,),
        "qk_layernorm": (True,),
        "num_moe_experts": (None,),
    },
    ignored_hf=LLAMA.ignored_hf,
)
