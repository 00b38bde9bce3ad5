"""Mixtral: a llama whose MLPs are experts, of which each token goes to the best few."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.families.llama import GATED_SILU, ROTARY, SILU, SIZES
from nemoalign.weights.config_rules import Field, Heads, Positions, Rope
from nemoalign.weights.ops import FuseGateUp
from nemoalign.weights.rules import Family, WeightRule
from nemoalign.weights.window_rules import Window

FAMILY = Family(
    name="mixtral",
    hf_architectures=("MixtralForCausalLM",),
    hf_model_type="mixtral",
    weights=(
        *LLAMA.weights,
        WeightRule(
            "decoder.layers.{i}.pre_mlp_layernorm.weight",
            "model.layers.{i}.post_attention_layernorm.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.router.weight", "model.layers.{i}.block_sparse_moe.gate.weight"
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.experts.local_experts.{e}.linear_fc1.weight",
            (
                "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight",
                "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight",
            ),
            FuseGateUp(),
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.experts.local_experts.{e}.linear_fc2.weight",
            "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight",
        ),
    ),
    config=(
        *SIZES,
        Heads(groups=8),
        Positions(),
        Rope(theta=1e6),
        Window(),
        SILU,
        Field("num_moe_experts", "num_local_experts", 8),
        Field("moe_router_topk", "num_experts_per_tok", 2),
        Field("moe_aux_loss_coeff", "router_aux_loss_coef", 0.001),
        Field("layernorm_epsilon", "rms_norm_eps", 1e-5),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", False),
    ),
    fixed=ROTARY
    | GATED_SILU
    | {
        "bias": (False,),
        "qkv_bias": (False,),
        "moe_ffn_hidden_size": (None,),
        "moe_router_pre_softmax": (False, True),
        "moe_router_load_balancing_type": ("aux_loss", "sinkhorn", "none"),
        "moe_token_dropping": (False,),
    },
    facts={"has_experts": (True,)},
    ignored_hf=LLAMA.ignored_hf,
)
