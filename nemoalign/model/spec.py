"""megatron-core's configuration and layer spec for an architecture; every field is honoured or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from nemoalign.config.architecture import FALCON, Architecture
from nemoalign.errors import ContentError
from nemoalign.model.activation import activation_function
from nemoalign.model.attention import CoreAttention
from nemoalign.model.cached_layer import CachedLayer
from nemoalign.model.layers import NormedRowLinear, mlp_spec
from nemoalign.model.linear import ColumnLinear, RowLinear
from nemoalign.model.norm import Norm
from nemoalign.parallel.device import Backend
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import pipeline_options

Precision = Literal["bf16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

_NORMALIZATIONS: dict[str, tuple[Literal["LayerNorm", "RMSNorm"], bool]] = {
    "layernorm": ("LayerNorm", False),
    "low_precision_layernorm": ("LayerNorm", False),
    "layernorm1p": ("LayerNorm", True),
    "rmsnorm": ("RMSNorm", False),
}
"""NeMo's name, any case -> megatron-core's name, and whether gamma is stored minus one."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What a run may choose about the model; none of it changes a checkpoint."""

    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    recompute: Literal["none", "selective", "full"] = "none"
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_num_layers: int = 1
    seed: int = 1234
    softmax_over_padding: bool = False
    reward_bias_learns: bool = True
    """False where a reward head's bias cannot matter: differences of rewards are all that is learned."""
    value_head: bool = False
    """A policy's values come from a head of its own, beside its output layer."""


def refuse_unsupported(arch: Architecture) -> None:
    """Raise ContentError naming the first field whose value cannot be honoured."""
    refused = {
        "name": arch.layer_spec == FALCON,
        "transformer_block_type": arch.transformer_block_type != "pre_ln",
        "position_embedding_type": arch.position_embedding_type not in ("rope", "learned_absolute"),
        "normalization": arch.normalization.lower() not in _NORMALIZATIONS,
        "moe_token_dropping": arch.moe_token_dropping,
        "moe_router_load_balancing_type": arch.has_experts
        and arch.moe_router_load_balancing_type not in ("aux_loss", "none"),
        "window_size": arch.window_size is not None and arch.window_size[1] != 0,
    }
    for name, is_refused in refused.items():
        if is_refused:
            raise ContentError(
                f"model_config.yaml: {name} is {getattr(arch, name)!r}, which training does not "
                "offer; convert and reshard can still move the weights."
            )
    activation_function(arch)


def transformer_config(
    arch: Architecture,
    layout: ParallelLayout,
    backend: Backend,
    precision: Precision,
    settings: ModelSettings,
) -> TransformerConfig:
    """Return megatron-core's configuration of ``arch`` for this device and layout."""
    dtype = DTYPES[precision]
    config = TransformerConfig(
        **_architecture_options(arch),
        hidden_dropout=settings.hidden_dropout,
        attention_dropout=settings.attention_dropout,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        # Every weight comes from a file, so nothing is spent on random ones.
        perform_initialization=False,
        use_cpu_initialization=backend.name == "cpu",
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=backend.can_compile,
        persist_layer_norm=False,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vp,
        sequence_parallel=layout.splits_sequence,
        # Only this dispatcher goes with rows of varying length; without experts it is never built.
        moe_token_dispatcher_type="alltoall",
        expert_model_parallel_size=layout.ep,
        # Losses are sums over tokens; the router scales its own loss so when it is built.
        calculate_per_token_loss=True,
        **pipeline_options(layout),
        **_expert_options(arch),
        **_recompute_options(settings, arch),
    )
    # The spec's own activation module is used; its constructor check knows TE's functions only.
    config.use_te_activation_func = True
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    vars(config).update({name: getattr(arch, name) for name in caps})
    vars(config)["has_post_norms"] = arch.has_post_norms
    return config


def _architecture_options(arch: Architecture) -> dict[str, Any]:
    """Return megatron-core's fields that a checkpoint fixes."""
    normalization, stored_minus_one = _NORMALIZATIONS[arch.normalization.lower()]
    scalar = arch.query_pre_attn_scalar
    return {
        "num_layers": arch.num_layers,
        "hidden_size": arch.hidden_size,
        "ffn_hidden_size": arch.ffn_hidden_size,
        "num_attention_heads": arch.num_attention_heads,
        "num_query_groups": arch.query_groups,
        "kv_channels": arch.head_dim,
        "normalization": normalization,
        "layernorm_zero_centered_gamma": stored_minus_one or arch.layernorm_zero_centered_gamma,
        "layernorm_epsilon": arch.layernorm_epsilon,
        "activation_func": activation_function(arch),
        "gated_linear_unit": arch.gated,
        "add_bias_linear": arch.bias,
        "add_qkv_bias": arch.qkv_bias,
        "qk_layernorm": arch.qk_layernorm,
        "rotary_interleaved": arch.rotary_interleaved,
        "window_size": arch.window_size,
        # Of Gemma 2, every second layer sees everything.
        "window_attn_skip_freq": 2 if arch.has_post_norms else None,
        "softmax_scale": scalar**-0.5 if scalar else None,
    }


def _expert_options(arch: Architecture) -> dict[str, Any]:
    if not arch.has_experts:
        return {}
    return {
        "num_moe_experts": arch.num_moe_experts,
        "moe_router_topk": arch.moe_router_topk,
        "moe_ffn_hidden_size": arch.expert_width,
        "moe_router_pre_softmax": arch.moe_router_pre_softmax,
        "moe_router_load_balancing_type": arch.moe_router_load_balancing_type,
        "moe_aux_loss_coeff": arch.moe_aux_loss_coeff,
        "moe_z_loss_coeff": arch.moe_z_loss_coeff,
        "moe_input_jitter_eps": arch.moe_input_jitter_eps or None,
    }


def _recompute_options(settings: ModelSettings, arch: Architecture) -> dict[str, Any]:
    if settings.recompute == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": settings.recompute_method,
            "recompute_num_layers": settings.recompute_num_layers,
        }
    if settings.recompute == "selective":
        # Attention keeps no scores, so the MLP's wide activations are what is worth recomputing.
        wide = "moe" if arch.has_experts else "mlp"
        return {"recompute_granularity": "selective", "recompute_modules": [wide]}
    return {}


def decoder_spec(config: TransformerConfig, num_layers: int) -> TransformerBlockSubmodules:
    """Return ``num_layers`` layers and a final norm: megatron-core's local spec, our norm and attention.

    The key map makes ``sharded_state_dict`` spell norms as Transformer Engine does, which fuses none
    with experts.
    """
    head_norm = Norm if config.qk_layernorm else IdentityOp
    row_linear = NormedRowLinear if vars(config)["has_post_norms"] else RowLinear
    keys = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if not config.num_moe_experts:
        keys["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    # megatron-core calls it as a class is called; its annotation does not say so.
    bias_dropout_add: Any = get_bias_dropout_add
    layer = ModuleSpec(
        module=CachedLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnLinear,
                    core_attention=CoreAttention,
                    linear_proj=row_linear,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            self_attn_bda=bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=mlp_spec(config, row_linear),
            mlp_bda=bias_dropout_add,
            sharded_state_dict_keys_map=keys,
        ),
    )
    norm: Any = Norm
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)
