"""StarCoder 2: layer norm, a plain MLP, biases everywhere, an optional sliding window."""

from nemoalign.weights.activation_rules import Gelu
from nemoalign.weights.config_rules import Field, Heads, Only, Positions, Rope
from nemoalign.weights.ops import FuseQKV, PadVocab
from nemoalign.weights.rules import Family, WeightRule
from nemoalign.weights.window_rules import Window

FAMILY = Family(
    name="starcoder2",
    hf_architectures=("Starcoder2ForCausalLM",),
    hf_model_type="starcoder2",
    weights=(
        WeightRule("embedding.word_embeddings.weight", "model.embed_tokens.weight", PadVocab()),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight",
            "model.layers.{i}.input_layernorm.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_bias",
            "model.layers.{i}.input_layernorm.bias",
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
            when="bias",
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
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_bias",
            "model.layers.{i}.post_attention_layernorm.bias",
        ),
        WeightRule("decoder.layers.{i}.mlp.linear_fc1.weight", "model.layers.{i}.mlp.c_fc.weight"),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.bias", "model.layers.{i}.mlp.c_fc.bias", when="bias"
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc2.weight", "model.layers.{i}.mlp.c_proj.weight"
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc2.bias",
            "model.layers.{i}.mlp.c_proj.bias",
            when="bias",
        ),
        WeightRule("decoder.final_layernorm.weight", "model.norm.weight"),
        WeightRule("decoder.final_layernorm.bias", "model.norm.bias"),
        WeightRule("output_layer.weight", "lm_head.weight", PadVocab(), when="untied"),
    ),
    config=(
        Field("num_layers", "num_hidden_layers"),
        Field("hidden_size", "hidden_size"),
        Field("ffn_hidden_size", "intermediate_size"),
        Field("num_attention_heads", "num_attention_heads"),
        Heads(groups=2),
        Positions(),
        Rope(),
        Only("partial_rotary_factor", 1.0),
        Window(),
        Gelu(
            "hidden_act",
            {
                "gelu_pytorch_tanh": ("gelu", True),
                "gelu_new": ("gelu", True),
                "gelu": ("gelu", False),
                "quick_gelu": ("approx-gelu", False),
                "relu2": ("squared-relu", False),
            },
            "gelu_pytorch_tanh",
        ),
        Field("bias", "use_bias", True),
        Field("layernorm_epsilon", "norm_epsilon", 1e-5),
        Field("init_method_std", "initializer_range", 0.018042),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", True),
    ),
    fixed={
        "normalization": ("layernorm",),
        "layernorm_zero_centered_gamma": (False,),
        "activation": ("gelu", "approx-gelu", "squared-relu"),
        "qkv_bias": (False,),
        "qk_layernorm": (False,),
        "position_embedding_type": ("rope",),
        "rotary_percentage": (1.0,),
        "rotary_interleaved": (False,),
        "apply_embedding_scaling": (False,),
        "num_moe_experts": (None,),
        "transformer_block_type": ("pre_ln",),
    },
    ignored_hf=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
)
