"""Nemotron (Minitron, Nemotron-4): squared ReLU without a gate, layernorm1p, partial rotary."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.families.llama import SIZES
from nemoalign.weights.config_rules import Choice, Field, Heads, Positions, Rope
from nemoalign.weights.rules import Family, WeightRule

FAMILY = Family(
    name="nemotron",
    hf_architectures=("NemotronForCausalLM",),
    hf_model_type="nemotron",
    weights=(
        *LLAMA.weights,
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_bias",
            "model.layers.{i}.input_layernorm.bias",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_bias",
            "model.layers.{i}.post_attention_layernorm.bias",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.weight", "model.layers.{i}.mlp.up_proj.weight"
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.bias",
            "model.layers.{i}.mlp.up_proj.bias",
            when="bias",
        ),
        WeightRule("decoder.final_layernorm.bias", "model.norm.bias"),
    ),
    config=(
        *SIZES,
        Heads(),
        Positions(),
        Rope(),
        Field("rotary_percentage", "partial_rotary_factor", 0.5),
        Choice("activation", "hidden_act", {"squared-relu": "relu2"}, "relu2"),
        Field("bias", "attention_bias", False),
        Field("bias", "mlp_bias", False),
        Field("layernorm_epsilon", "norm_eps", 1e-5),
        Field("init_method_std", "initializer_range", 0.0134),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", False),
    ),
    fixed={
        "normalization": ("layernorm1p",),
        "activation": ("squared-relu",),
        "openai_gelu": (False,),
        "qkv_bias": (False,),
        "qk_layernorm": (False,),
        "position_embedding_type": ("rope",),
        "rotary_interleaved": (False,),
        "apply_embedding_scaling": (False,),
        "window_size": (None,),
        "num_moe_experts": (None,),
        "transformer_block_type": ("pre_ln",),
    },
    ignored_hf=LLAMA.ignored_hf,
)
