"""Qwen 3 (dense): llama's tensors and a norm on every query and key head."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.weights.config_rules import Choice, Field, Heads, Only, Positions, Rope
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
        Field("num_layers", "num_hidden_layers"),
        Field("hidden_size", "hidden_size"),
        Field("ffn_hidden_size", "intermediate_size"),
        Field("num_attention_heads", "num_attention_heads"),
        Heads(groups=32, width=128),
        Positions(),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        LayerWindow(),
        Choice("activation", "hidden_act", {"fast-swiglu": "silu", "swiglu": "silu"}, "silu"),
        Only("attention_bias", False),
        Field("layernorm_epsilon", "rms_norm_eps", 1e-6),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", False),
    ),
    fixed={
        "normalization": ("rmsnorm",),
        "layernorm_zero_centered_gamma": (False,),
        "activation": ("fast-swiglu", "swiglu"),
        "openai_gelu": (False,),
        "bias": (False,),
        "qkv_bias": (False,),
        "qk_layernorm": (True,),
        "position_embedding_type": ("rope",),
        "rotary_percentage": (1.0,),
        "rotary_interleaved": (False,),
        "apply_embedding_scaling": (False,),
        "num_moe_experts": (None,),
        "transformer_block_type": ("pre_ln",),
    },
    ignored_hf=LLAMA.ignored_hf,
)
