"""StarCoder 2: layer norm, a plain MLP, biases everywhere, an optional sliding window."""

from nemoalign.families.llama import ROTARY, SIZES
from nemoalign.families.nemotron import FAMILY as NEMOTRON
from nemoalign.weights.activation_rules import Gelu
from nemoalign.weights.config_rules import Field, Heads, Only, Positions, Rope
from nemoalign.weights.rules import Family, WeightRule
from nemoalign.weights.window_rules import Window

FAMILY = Family(
    name="starcoder2",
    hf_architectures=("Starcoder2ForCausalLM",),
    hf_model_type="starcoder2",
    weights=(
        *NEMOTRON.weights,
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
    ),
    config=(
        *SIZES,
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
    fixed=ROTARY
    | {
        "normalization": ("layernorm",),
        "activation": ("gelu", "approx-gelu", "squared-relu"),
        "qkv_bias": (False,),
        "num_moe_experts": (None,),
    },
    ignored_hf=NEMOTRON.ignored_hf,
)
