"""Mistral: llama's tensors, without biases and with an optional sliding window."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.families.llama import GATED_SILU, ROTARY, SILU, SIZES
from nemoalign.weights.config_rules import Field, Heads, Only, Positions, Rope
from nemoalign.weights.rules import Family
from nemoalign.weights.window_rules import Window

FAMILY = Family(
    name="mistral",
    hf_architectures=("MistralForCausalLM",),
    hf_model_type="mistral",
    weights=LLAMA.weights,
    config=(
        *SIZES,
        Heads(groups=8),
        Positions(),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        Window(default=4096),
        SILU,
        Field("layernorm_epsilon", "rms_norm_eps", 1e-6),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", False),
    ),
    fixed=ROTARY
    | GATED_SILU
    | {
        "bias": (False,),
        "qkv_bias": (False,),
        "num_moe_experts": (None,),
    },
    ignored_hf=LLAMA.ignored_hf,
)
