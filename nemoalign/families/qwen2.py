"""Qwen 2 and 2.5: llama's tensors with biases on query, key and value alone."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.weights.config_rules import Choice, Field, Heads, Only, Positions, Rope
from nemoalign.weights.rules import Family
from nemoalign.weights.window_rules import LayerWindow

FAMILY = Family(
    name="qwen2",
    hf_architectures=("Qwen2ForCausalLM",),
    hf_model_type="qwen2",
    weights=LLAMA.weights,
    config=(
        Field("num_layers", "num_hidden_layers"),
        Field("hidden_size", "hidden_size"),
        Field("ffn_hidden_size", "intermediate_size"),
        Field("num_attention_heads", "num_attention_heads"),
        Heads(groups=32),
        Positions(),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        LayerWindow(),
        Choice("activation", "hidden_act", {"fast-swiglu": "silu", "swiglu": "silu"}, "silu"),
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
        "qkv_bias": (True,),
        "qk_layernorm": (False,),
        "position_embedding_type": ("rope",),
        "rotary_percentage": (1.0,),
        "rotary_interleaved": (False,),
        "apply_embedding_scaling": (False,),
        "num_moe_experts": (None,),
        "transformer_block_type": ("pre_ln",),
    },
    ignored_hf=LLAMA.ignored_hf,
)
