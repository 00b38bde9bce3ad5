"""Mixtral: a llama whose MLPs are experts, of which each token goes to the best few."""

from nemoalign.weights.config_rules import Choice, Field, Heads, Positions, Rope
from nemoalign.weights.ops import FuseGateUp, FuseQKV, PadVocab
from nemoalign.weights.rules import Family, WeightRule
from nemoalign.weights.window_rules import Window

FAMILY = Family(
    name="mixtral",
    hf_architectures=("MixtralForCausalLM",),
    hf_model_type="mixtral",
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
            "decoder.layers.{i}.self_attention.linear_proj.weight",
            "model.layers.{i}.self_attn.o_proj.weight",
        ),
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
        WeightRule("decoder.final_layernorm.weight", "model.norm.weight"),
        WeightRule("output_layer.weight", "lm_head.weight", PadVocab(), when="untied"),
    ),
    config=(
        Field("num_layers", "num_hidden_layers"),
        Field("hidden_size", "hidden_size"),
        Field("ffn_hidden_size", "intermediate_size"),
        Field("num_attention_heads", "num_attention_heads"),
        Heads(groups=8),
        Positions(),
        Rope(theta=1e6),
        Window(),
        Choice("activation", "hidden_act", {"fast-swiglu": "silu", "swiglu": "silu"}, "silu"),
        Field("num_moe_experts", "num_local_experts", 8),
        Field("moe_router_topk", "num_experts_per_tok", 2),
        Field("moe_aux_loss_coeff", "router_aux_loss_coef", 0.001),
        Field("layernorm_epsilon", "rms_norm_eps", 1e-5),
        Field("init_method_std", "initializer_range", 0.02),
        Field("share_embeddings_and_output_weights", "tie_word_embeddings", False),
    ),
    fixed={
        "normalization": ("rmsnorm",),
        "layernorm_zero_centered_gamma": (False,),
        "activation": ("fast-swiglu", "swiglu"),
        "openai_gelu": (False,),
        "bias": (False,),
        "qkv_bias": (False,),
        "qk_layernorm": (False,),
        "position_embedding_type": ("rope",),
        "rotary_percentage": (1.0,),
        "rotary_interleaved": (False,),
        "apply_embedding_scaling": (False,),
        "moe_ffn_hidden_size": (None,),
        "moe_router_pre_softmax": (False, True),
        "moe_router_load_balancing_type": ("aux_loss", "sinkhorn", "none"),
        "moe_token_dropping": (False,),
        "transformer_block_type": ("pre_ln",),
    },
    facts={"has_experts": (True,)},
    ignored_hf=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
)
