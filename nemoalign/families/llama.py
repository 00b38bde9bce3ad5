"""Llama 1 to 3.x and every model that is spelled ``LlamaForCausalLM``."""

from nemoalign.weights.config_rules import Choice, Field, Heads, Only, Positions, Rope
from nemoalign.weights.ops import FuseGateUp, FuseQKV, PadVocab
from nemoalign.weights.rules import Family, WeightRule

# The sizes, as most families spell them.
SIZES = (
    Field("num_layers", "num_hidden_layers"),
    Field("hidden_size", "hidden_size"),
    Field("ffn_hidden_size", "intermediate_size"),
    Field("num_attention_heads", "num_attention_heads"),
)

SILU = Choice("activation", "hidden_act", {"fast-swiglu": "silu", "swiglu": "silu"}, "silu")

# What decoders with rotary positions have in common; a family states what it has otherwise.
ROTARY = {
    "layernorm_zero_centered_gamma": (False,),
    "qk_layernorm": (False,),
    "position_embedding_type": ("rope",),
    "rotary_percentage": (1.0,),
    "rotary_interleaved": (False,),
    "apply_embedding_scaling": (False,),
    "transformer_block_type": ("pre_ln",),
}

# The norm and the MLP of llama and its kin.
GATED_SILU = {
    "normalization": ("rmsnorm",),
    "activation": ("fast-swiglu", "swiglu"),
    "openai_gelu": (False,),
}

FAMILY = Family(
    name="llama",
    hf_architectures=("LlamaForCausalLM",),
    hf_model_type="llama",
    weights=(
        WeightRule("embedding.word_embeddings.weight", "model.embed_tokens.weight", PadVocab()),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight",
            "model.layers.{i}.input_layernorm.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.weight",
            (
                "model.layers.{i}.self_attn.q_proj.weight",
                "model.layers.{i}.self_attn.k_proj.weight",
                "model.layers.{i}.self_attn.v_proj.weight",
            ),
            FuseQKV(),
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.bias",
            (
                "model.layers.{i}.self_attn.q_proj.bias",
                "model.layers.{i}.self_attn.k_proj.bias",
                "model.layers.{i}.self_attn.v_proj.bias",
            ),
            FuseQKV(),
            when="qkv_bias",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_proj.weight",
            "model.layers.{i}.self_attn.o_proj.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_proj.bias",
            "model.layers.{i}.self_attn.o_proj.bias",
            when="bias",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight",
            "model.layers.{i}.post_attention_layernorm.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.weight",
            ("model.layers.{i}.mlp.gate_proj.weight", "model.layers.{i}.mlp.up_proj.weight"),
            FuseGateUp(),
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.bias",
            ("model.layers.{i}.mlp.gate_proj.bias", "model.layers.{i}.mlp.up_proj.bias"),
            FuseGateUp(),
            when="bias",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc2.weight", "model.layers.{i}.mlp.down_proj.weight"
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc2.bias",
            "model.layers.{i}.mlp.down_proj.bias",
            when="bias",
        ),
        WeightRule("decoder.final_layernorm.weight", "model.norm.weight"),
        WeightRule("output_layer.weight", "lm_head.weight", PadVocab(), when="untied"),
    ),
    config=(
        *SIZES,
        Heads(),
        Positions(),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        SILU,
        Field("bias", "attention_bias", False),
        Field("bias", "mlp_bias", False),
        Field("layernorm_epsilon", "rms_norm_eps", 1e-6),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", False),
    ),
    fixed=ROTARY
    | GATED_SILU
    | {
        "qkv_bias": (False,),
        "window_size": (None,),
        "num_moe_experts": (None,),
    },
    ignored_hf=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
)
