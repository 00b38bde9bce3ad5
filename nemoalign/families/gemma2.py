"""Gemma 2: Gemma with norms behind attention and MLP, capped logits, and windows in turn."""

from nemoalign.families.llama import FAMILY as LLAMA
from nemoalign.weights.activation_rules import Gelu
from nemoalign.weights.config_rules import Field, Heads, Only, Positions, Rope
from nemoalign.weights.gamma_ops import CenterGamma
from nemoalign.weights.gemma_rules import AlternatingWindow, Softcaps
from nemoalign.weights.rules import Family, WeightRule

FAMILY = Family(
    name="gemma2",
    hf_architectures=("Gemma2ForCausalLM",),
    hf_model_type="gemma2",
    layer_spec="megatron_gemma2",
    weights=(
        *LLAMA.weights,
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight",
            "model.layers.{i}.input_layernorm.weight",
            CenterGamma(),
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_proj.post_layernorm.weight",
            "model.layers.{i}.post_attention_layernorm.weight",
            CenterGamma(),
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight",
            "model.layers.{i}.pre_feedforward_layernorm.weight",
            CenterGamma(),
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc2.post_layernorm.weight",
            "model.layers.{i}.post_feedforward_layernorm.weight",
            CenterGamma(),
        ),
        WeightRule("decoder.final_layernorm.weight", "model.norm.weight", CenterGamma()),
    ),
    config=(
        Field("num_layers", "num_hidden_layers"),
        Field("hidden_size", "hidden_size"),
        Field("ffn_hidden_size", "intermediate_size"),
        Field("num_attention_heads", "num_attention_heads"),
        Heads(groups=4, width=256),
        Positions(),
        Rope(),
        AlternatingWindow(),
        Softcaps(),
        Only("partial_rotary_factor", 1.0),
        Gelu(
            "hidden_activation",
            {"gelu_pytorch_tanh": ("fast-geglu", True), "gelu_new": ("fast-geglu", True)},
            "gelu_pytorch_tanh",
        ),
        Only("attention_bias", False),
        Only("use_bidirectional_attention", False),
        Field("layernorm_epsilon", "rms_norm_eps", 1e-6),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", True),
    ),
    fixed={
        "normalization": ("rmsnorm",),
        "layernorm_zero_centered_gamma": (True, False),
        "activation": ("fast-geglu", "geglu"),
        "bias": (False,),
        "qkv_bias": (False,),
        "qk_layernorm": (False,),
        "position_embedding_type": ("rope",),
        "rotary_percentage": (1.0,),
        "rotary_interleaved": (False,),
        "apply_embedding_scaling": (True,),
        "num_moe_experts": (None,),
        "transformer_block_type": ("pre_ln",),
    },
    facts={"gelu_is_tanh": (True,)},
    ignored_hf=LLAMA.ignored_hf,
)
