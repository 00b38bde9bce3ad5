"""GPT-2: learned positions, biases everywhere, one transposed matrix for query, key and value."""

from nemoalign.weights.activation_rules import Gelu
from nemoalign.weights.config_rules import Field, Only
from nemoalign.weights.conv1d_ops import FuseTransposedQKV, Transpose
from nemoalign.weights.ops import PadVocab
from nemoalign.weights.rules import Family, WeightRule
from nemoalign.weights.size_rules import FeedForward, LearnedPositions

FAMILY = Family(
    name="gpt2",
    hf_architectures=("GPT2LMHeadModel",),
    hf_model_type="gpt2",
    weights=(
        WeightRule("embedding.word_embeddings.weight", "transformer.wte.weight", PadVocab()),
        WeightRule("embedding.position_embeddings.weight", "transformer.wpe.weight"),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight",
            "transformer.h.{i}.ln_1.weight",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.layer_norm_bias",
            "transformer.h.{i}.ln_1.bias",
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.weight",
            "transformer.h.{i}.attn.c_attn.weight",
            FuseTransposedQKV(),
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_qkv.bias",
            "transformer.h.{i}.attn.c_attn.bias",
            FuseTransposedQKV(),
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_proj.weight",
            "transformer.h.{i}.attn.c_proj.weight",
            Transpose(),
        ),
        WeightRule(
            "decoder.layers.{i}.self_attention.linear_proj.bias",
            "transformer.h.{i}.attn.c_proj.bias",
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight", "transformer.h.{i}.ln_2.weight"
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.layer_norm_bias", "transformer.h.{i}.ln_2.bias"
        ),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc1.weight",
            "transformer.h.{i}.mlp.c_fc.weight",
            Transpose(),
        ),
        WeightRule("decoder.layers.{i}.mlp.linear_fc1.bias", "transformer.h.{i}.mlp.c_fc.bias"),
        WeightRule(
            "decoder.layers.{i}.mlp.linear_fc2.weight",
            "transformer.h.{i}.mlp.c_proj.weight",
            Transpose(),
        ),
        WeightRule("decoder.layers.{i}.mlp.linear_fc2.bias", "transformer.h.{i}.mlp.c_proj.bias"),
        WeightRule("decoder.final_layernorm.weight", "transformer.ln_f.weight"),
        WeightRule("decoder.final_layernorm.bias", "transformer.ln_f.bias"),
        WeightRule("output_layer.weight", "lm_head.weight", PadVocab(), when="untied"),
    ),
    config=(
        Field("num_layers", "n_layer"),
        Field("hidden_size", "n_embd"),
        FeedForward("n_inner", hidden="n_embd"),
        Field("num_attention_heads", "n_head"),
        LearnedPositions("n_positions"),
        Gelu(
            "activation_function",
            {
                "gelu_new": ("gelu", True),
                "gelu_pytorch_tanh": ("gelu", True),
                "gelu": ("gelu", False),
                "quick_gelu": ("approx-gelu", False),
                "relu2": ("squared-relu", False),
            },
            "gelu_new",
        ),
        Only("scale_attn_weights", True),
        Only("scale_attn_by_inverse_layer_idx", False),
        Only("add_cross_attention", False),
        Field("layernorm_epsilon", "layer_norm_epsilon", 1e-5),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", True),
    ),
    fixed={
        "normalization": ("layernorm",),
        "layernorm_zero_centered_gamma": (False,),
        "activation": ("gelu", "approx-gelu", "squared-relu"),
        "bias": (True,),
        "qkv_bias": (False, True),
        "qk_layernorm": (False,),
        "position_embedding_type": ("learned_absolute",),
        "apply_embedding_scaling": (False,),
        "window_size": (None,),
        "num_moe_experts": (None,),
        "transformer_block_type": ("pre_ln",),
    },
    facts={"heads_per_group": (1,), "heads_fill_hidden": (True,)},
    hf_prefix="transformer.",
    ignored_hf=("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"),
)
