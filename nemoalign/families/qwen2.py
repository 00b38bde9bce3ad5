"""Qwen 2 and 2.5: llama's tensors with biases on query, key and value alone."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.families.llama import GATED_SILU, ROTARY, SILU, SIZES
from nemoalign.weights.config_rules import Field, Heads, Only, Positions, Rope
from nemoalign.weights.rules import Family
from nemoalign.weights.window_rules import LayerWindow

FAMILY = Family(
    name="qwen2",
    hf_architectures=("Qwen2ForCausalLM",),
    hf_model_type="qwen2",
    weights=LLAMA.weights,
    config=(
        *SIZES,
        Heads(groups=32),
        Positions(),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        LayerWindow(),
        SILU,
        Field("layernorm_epsilon", "rms_norm_eps", 1e-6),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", False),
    ),
    fixed=ROTARY
    | GATED_SILU
    | {
        "bias": (False,),
        "qkv_bias": (True,),
        "num_moe_experts": (None,),
    },
    ignored_hf=LLAMA.ignored_hf,
)
