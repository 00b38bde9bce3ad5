"""Gemma 2: Gemma with norms behind attention and MLP, capped logits, and windows in turn."""

from nemoalign.families.gemma import FAMILY as GEMMA
from nemoalign.families.gemma import SCALED
from nemoalign.families.llama import SIZES
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
        *GEMMA.weights,
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
    ),
    config=(
        *SIZES,
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
    fixed=SCALED,
    facts={"gelu_is_tanh": (True,)},
    ignored_hf=GEMMA.ignored_hf,
)
