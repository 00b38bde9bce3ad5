"""A NeMo 2 model's configuration in NeMo's older terms, and back: one table for both directions.

NeMo 2 configures megatron-core's ``TransformerConfig`` itself, so most fields are megatron-core's; the
older ``model_config.yaml`` has names of its own. What no row carries and would change the arithmetic
is refused by ``_PLAIN``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemoalign.checkpoint.settings.values import section
from nemoalign.checkpoint.sources.nemo2_context import TARGET, short_name
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError


@dataclass(frozen=True)
class Row:
    """One setting: NeMo 2's name, ``model_config.yaml``'s, and what it is where NeMo 2 leaves it out."""

    nemo2: str
    nemo: str
    absent: Any = None


_MUST = object()

ROWS = (
    Row("num_layers", "num_layers", _MUST),
    Row("hidden_size", "hidden_size", _MUST),
    Row("ffn_hidden_size", "ffn_hidden_size"),
    Row("num_attention_heads", "num_attention_heads", _MUST),
    Row("num_query_groups", "num_query_groups"),
    Row("kv_channels", "kv_channels"),
    Row("seq_length", "encoder_seq_length", 1024),
    Row("layernorm_epsilon", "layernorm_epsilon", 1e-5),
    Row("add_bias_linear", "bias", True),
    Row("add_qkv_bias", "qkv_bias", False),
    Row("qk_layernorm", "qk_layernorm", False),
    Row("bias_activation_fusion", "bias_activation_fusion", False),
    Row("bias_dropout_fusion", "bias_dropout_add_fusion", False),
    Row("position_embedding_type", "position_embedding_type", "learned_absolute"),
    Row("rotary_percent", "rotary_percentage", 1.0),
    Row("rotary_base", "rotary_base", 10000),
    Row("rotary_interleaved", "rotary_interleaved", False),
    Row("seq_len_interpolation_factor", "seq_len_interpolation_factor"),
    Row("share_embeddings_and_output_weights", "share_embeddings_and_output_weights", True),
    Row("make_vocab_size_divisible_by", "make_vocab_size_divisible_by", 128),
    Row("vocab_size", "override_vocab_size"),
    Row("window_size", "window_size"),
    Row("init_method_std", "init_method_std", 0.02),
    Row("hidden_dropout", "hidden_dropout", 0.1),
    Row("attention_dropout", "attention_dropout", 0.1),
    Row("num_moe_experts", "num_moe_experts"),
    Row("moe_router_topk", "moe_router_topk", 2),
    Row("moe_ffn_hidden_size", "moe_ffn_hidden_size"),
    Row("moe_layer_freq", "moe_layer_freq", 1),
    Row("moe_router_pre_softmax", "moe_router_pre_softmax", False),
    Row("moe_router_load_balancing_type", "moe_router_load_balancing_type", "aux_loss"),
    Row("moe_shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
    Row("moe_aux_loss_coeff", "moe_aux_loss_coeff", 0.0),
    Row("moe_z_loss_coeff", "moe_z_loss_coeff"),
    Row("moe_input_jitter_eps", "moe_input_jitter_eps"),
    Row("moe_token_dropping", "moe_token_dropping", False),
)
"""Settings that mean the same on both sides; defaults are ``TransformerConfig``'s and ``GPTConfig``'s."""

_ROPE_SCALING = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")
"""Fields that only configurations of Llama 3.1 and later have: their presence means that they scale."""

_CUSTOMIZED = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")

_GELU = "torch._C._nn.gelu"
_TANH = "nemo.collections.llm.fn.activation.openai_gelu"
_ACTIVATIONS = (
    (_GELU, False, False, ("gelu",)),
    (_GELU, True, False, ("geglu", "fast-geglu")),
    (_TANH, False, True, ("gelu",)),
    (_TANH, True, True, ("geglu", "fast-geglu")),
    ("torch.nn.functional.silu", True, False, ("fast-swiglu", "swiglu")),
    ("torch.nn.functional.relu", True, False, ("reglu", "fast-reglu")),
    ("nemo.collections.llm.fn.activation.quick_gelu", False, False, ("approx-gelu",)),
    ("nemo.collections.llm.fn.activation.squared_relu", False, False, ("squared-relu",)),
)
"""NeMo 2's function and whether it is gated; ``openai_gelu`` and the names it has in NeMo."""

_PLAIN: Mapping[str, Any] = {
    "multi_latent_attention": False,
    "apply_residual_connection_post_layernorm": False,
    "heterogeneous_block_specs": False,
    "parallel_attention": False,
    "qk_l2_norm": False,
    "attention_output_gate": False,
    "no_rope_freq": None,
    "window_attn_skip_freq": None,
    "linear_attention_freq": None,
    "experimental_attention_variant": None,
    "softmax_scale": None,
    "softmax_type": "vanilla",
    "mtp_num_layers": None,
    "activation_func_clamp_value": None,
    "glu_linear_offset": 0.0,
    "embedding_init_method_std": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "moe_router_topk_scaling_factor": None,
    "moe_router_num_groups": None,
}
"""Settings of megatron-core that change a model and that NeMo's older form does not know: their plain value."""


def check_stated(tree: Mapping[str, Any], where: str) -> None:
    """Refuse a tree that leaves out what its class then decides, since no class is ever run.

    Raises:
        ContentError: naming what is missing.
    """
    config = section(tree, "config")
    names = (*(row.nemo2 for row in ROWS), "normalization", "activation_func", "gated_linear_unit")
    missing = [name for name in names if name not in config]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise ContentError(
            f"{where} states only what was given to {short_name(config) or 'its model'}, not the "
            f"values of the class itself: it lacks {', '.join(missing[:4])}{more}. "
            "context/model.yaml states them all: fetch that file as well."
        )


def nemo_fields(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of ``model_config.yaml`` that a NeMo 2 model's tree states.

    Raises:
        ContentError: when a size is missing, or the model has what a ``.nemo`` cannot describe.
    """
    config = section(tree, "config")
    _check(config, where)
    fields = {
        row.nemo: row.absent if config.get(row.nemo2) is None else config[row.nemo2] for row in ROWS
    }
    if fields["ffn_hidden_size"] is None:
        fields["ffn_hidden_size"] = 4 * int(fields["hidden_size"])
    fields["max_position_embeddings"] = fields["encoder_seq_length"]
    fields |= _norm(config, where) | _activation(config, where)
    if config.get("scale_factor") is not None:
        fields |= {name: config[name] for name in _ROPE_SCALING if config.get(name) is not None}
        fields["scale_positional_embedding"] = True
    if "Gemma" in short_name(config):
        fields["apply_embedding_scaling"] = True
    customized = {name: config[name] for name in _CUSTOMIZED if config.get(name) is not None}
    if customized:
        fields |= {"mcore_customization_config": customized, "name": "megatron_gemma2"}
    return {name: value for name, value in fields.items() if value is not None}


def _check(config: Mapping[str, Any], where: str) -> None:
    missing = [row.nemo2 for row in ROWS if row.absent is _MUST and config.get(row.nemo2) is None]
    if missing:
        raise ContentError(
            f"{where} does not state {', '.join(missing)} of its {short_name(config) or 'model'}. "
            "A NeMo 2 directory states them in context/model.yaml: fetch that file as well."
        )
    odd = [name for name in _PLAIN if config.get(name, _PLAIN[name]) not in (_PLAIN[name], None)]
    if odd:
        raise ContentError(
            f"{where} has {odd[0]} {config[odd[0]]!r:.60}; such a model is not supported, because "
            "nothing but NeMo 2 can describe it."
        )


def _norm(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    name = str(config.get("normalization") or "LayerNorm")
    minus_one = bool(config.get("layernorm_zero_centered_gamma"))
    if name == "RMSNorm":
        return {"normalization": "rmsnorm", "layernorm_zero_centered_gamma": minus_one}
    if name == "LayerNorm":
        return {"normalization": "layernorm1p" if minus_one else "layernorm"}
    raise ContentError(f"{where} has normalization {name[:60]!r}; LayerNorm and RMSNorm are known.")


def _activation(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = short_name(config.get("activation_func")) or "gelu"
    gate = bool(config.get("gated_linear_unit"))
    for path, gated, tanh, names in _ACTIVATIONS:
        if (short_name(path), gated) == (function, gate):
            return {"activation": names[0], "openai_gelu": tanh}
    with_gate = "with a gate" if gate else "without a gate"
    raise ContentError(
        f"{where} has activation_func {function[:60]!r} {with_gate}, unknown to NeMo."
    )


def nemo2_fields(config: Mapping[str, Any], arch: Architecture, where: str) -> dict[str, Any]:
    """Return the fields of NeMo 2's configuration for a ``model_config.yaml``.

    Raises:
        ContentError: when the model has something that NeMo 2 does not.
    """
    fields = dict(_same_fields(config, arch))
    normalization = arch.normalization.lower()
    if normalization not in ("layernorm", "layernorm1p", "rmsnorm"):
        raise ContentError(f"{where} has normalization {normalization!r}, which NeMo 2 has not.")
    fields["normalization"] = "RMSNorm" if normalization == "rmsnorm" else "LayerNorm"
    fields["layernorm_zero_centered_gamma"] = (
        normalization == "layernorm1p" or arch.layernorm_zero_centered_gamma
    )
    fields["gated_linear_unit"] = arch.gated
    fields["activation_func"] = {TARGET: _function_of(arch, where), "_call_": False}
    if arch.scale_positional_embedding:
        fields |= {name: getattr(arch, name) for name in _ROPE_SCALING}
    return fields | dict(section(config, "mcore_customization_config"))


def _same_fields(config: Mapping[str, Any], arch: Architecture) -> Iterator[tuple[str, Any]]:
    for row in ROWS:
        value = getattr(arch, row.nemo, config.get(row.nemo))
        if isinstance(value, tuple):
            value = list(value)
        yield row.nemo2, (None if row.absent is _MUST else row.absent) if value is None else value


def _function_of(arch: Architecture, where: str) -> str:
    for path, gated, tanh, names in _ACTIVATIONS:
        if arch.activation in names and (gated, tanh) == (arch.gated, arch.openai_gelu):
            return path
    raise ContentError(f"{where} has activation {arch.activation!r}, which NeMo 2 has not.")


_MODELS = "nemo.collections.llm.gpt.model."
_CLASSES: Mapping[str, tuple[str, str, str]] = {
    "llama": ("llama", "LlamaModel", "LlamaConfig"),
    "llama 3.1": ("llama", "LlamaModel", "Llama31Config"),
    "mistral": ("mistral", "MistralModel", "MistralConfig7B"),
    "mixtral": ("mixtral", "MixtralModel", "MixtralConfig"),
    "qwen2": ("qwen2", "Qwen2Model", "Qwen2Config"),
    "gemma": ("gemma", "GemmaModel", "GemmaConfig"),
    "gemma2": ("gemma2", "Gemma2Model", "Gemma2Config"),
    "nemotron": ("nemotron", "NemotronModel", "NemotronConfig"),
    "starcoder2": ("starcoder2", "Starcoder2Model", "Starcoder2Config"),
}
"""Module, model and configuration of NeMo 2 for a family; every other model is its GPT."""


def nemo2_classes(family: str, arch: Architecture, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the dotted names of NeMo 2's model and configuration classes for a model.

    What only a class does (scaling positions as Llama 3.1, the embedding as Gemma, two more norms as
    Gemma 2) decides before the family.

    Raises:
        ContentError: for layers that no class of NeMo 2 has.
    """
    if arch.layer_spec and family not in _CLASSES:
        raise ContentError(
            f"NeMo 2 has no model with the layers of {arch.layer_spec}. Write a .nemo or a Hugging Face "
            "directory instead: leave --to nemo2 away."
        )
    kind = family
    if arch.scale_positional_embedding:
        kind = "llama 3.1"
    elif section(config, "mcore_customization_config"):
        kind = "gemma2"
    elif arch.apply_embedding_scaling:
        kind = "gemma"
    module, model, settings = _CLASSES.get(kind, ("base", "GPTModel", "GPTConfig"))
    return f"{_MODELS}{module}.{model}", f"{_MODELS}{module}.{settings}"
