"""Falcon 7B, 40B and 180B: attention and MLP side by side. Converted, but not trained."""

from nemoalign.families.llama import ROTARY
from nemoalign.weights.activation_rules import Gelu
from nemoalign.weights.config_rules import Field, Only, Positions, Rope
from nemoalign.weights.falcon_rules import FalconShape
from nemoalign.weights.ops import PadVocab
from nemoalign.weights.rules import Family, WeightRule
from nemoalign.weights.size_rules import FeedForward

FAMILY = Family(
    name="falcon",
    hf_architectures=("FalconForCausalLM",),
    hf_model_type="falcon",
    weights=(
        WeightRule(
            "embedding.word_embeddings.weight", "transformer.word_embeddings.weight", PadVocab()
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight",
            "transformer.h.{i}.ln_attn.weight",
            when="new_decoder",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_bias",
            "transformer.h.{i}.ln_attn.bias",
            when="new_decoder",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight",
            "transformer.h.{i}.input_layernorm.weight",
            when="old_decoder",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_bias",
            "transformer.h.{i}.input_layernorm.bias",
            when="old_decoder",
        ),
        # Both sides pack query, key and value per query group.
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.weight",
            "transformer.h.{i}.self_attention.query_key_value.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.bias",
            "transformer.h.{i}.self_attention.query_key_value.bias",
            when="bias",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_proj.weight",
            "transformer.h.{i}.self_attention.dense.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_proj.bias",
            "transformer.h.{i}.self_attention.dense.bias",
            when="bias",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight",
            "transformer.h.{i}.ln_mlp.weight",
            when="new_decoder",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_bias",
            "transformer.h.{i}.ln_mlp.bias",
            when="new_decoder",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight",
            "transformer.h.{i}.post_attention_layernorm.weight",
            when="old_decoder",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_bias",
            "transformer.h.{i}.post_attention_layernorm.bias",
            when="old_decoder",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.weight",
            "transformer.h.{i}.mlp.dense_h_to_4h.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.bias",
            "transformer.h.{i}.mlp.dense_h_to_4h.bias",
            when="bias",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc2.weight",
            "transformer.h.{i}.mlp.dense_4h_to_h.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc2.bias",
            "transformer.h.{i}.mlp.dense_4h_to_h.bias",
            when="bias",
        ),
        WeightRule("decoder.final_layernorm.weight", "transformer.ln_f.weight"),
        WeightRule("decoder.final_layernorm.bias", "transformer.ln_f.bias"),
        WeightRule("output_layer.weight", "lm_head.weight", PadVocab(), when="untied"),
    ),
    config=(
        Field("num_layers", "num_hidden_layers"),
        Field("hidden_size", "hidden_size"),
        FeedForward("ffn_hidden_size", hidden="hidden_size"),
        Field("num_attention_heads", "num_attention_heads"),
        FalconShape(),
        Positions(default=2048),
        Only("alibi", False),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        Gelu(
            "activation",
            {
                "gelu": ("gelu", False),
                "gelu_pytorch_tanh": ("gelu", True),
                "gelu_new": ("gelu", True),
            },
            "gelu",
        ),
        Field("bias", "bias", False),
        Field("layernorm_epsilon", "layer_norm_epsilon", 1e-5),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", True),
    ),
    fixed=ROTARY
    | {
        "normalization": ("layernorm",),
        "activation": ("gelu",),
        "qkv_bias": (False,),
        "window_size": (None,),
        "num_moe_experts": (None,),
    },
    facts={"heads_fill_hidden": (True,)},
    layer_spec="megatron_falcon_gpt",
    hf_prefix="transformer.",
    ignored_hf=("transformer.h.{i}.self_attention.rotary_emb.inv_freq",),
)
