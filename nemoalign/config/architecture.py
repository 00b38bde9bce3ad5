"""The architecture a checkpoint's ``model_config.yaml`` describes, typed, with NeMo's defaults.

Field names and defaults are NeMo's (``megatron_gpt_model.py::model_provider_func`` and
``megatron_base_model.py::build_transformer_config`` at v2.2.0): an absent ``bias`` means True, an
absent ``activation`` means gelu, an absent ``position_embedding_type`` means learned_absolute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from nemoalign.errors import ContentError

FALCON = "megatron_falcon_gpt"
GEMMA2 = "megatron_gemma2"
OWN_LAYERS = (FALCON, GEMMA2)
Fields = Mapping[str, Any]
GATED = ("geglu", "fast-geglu", "swiglu", "fast-swiglu", "reglu", "fast-reglu")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that decides shapes and arithmetic of a GPT; locked once a checkpoint exists."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int | None = None
    kv_channels: int | None = None
    encoder_seq_length: int = 512
    max_position_embeddings: int = 512
    normalization: str = "layernorm"
    layernorm_zero_centered_gamma: bool = False
    layernorm_epsilon: float = 1e-5
    activation: str = "gelu"
    openai_gelu: bool = False
    bias: bool = True
    qkv_bias: bool = False
    qk_layernorm: bool = False
    bias_activation_fusion: bool = True
    position_embedding_type: str = "learned_absolute"
    rotary_percentage: float = 1.0
    rotary_base: float = 10000.0
    rotary_interleaved: bool = False
    seq_len_interpolation_factor: float | None = None
    scale_positional_embedding: bool = False
    scale_factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_len: int = 8192
    share_embeddings_and_output_weights: bool = True
    make_vocab_size_divisible_by: int = 128
    override_vocab_size: int | None = None
    apply_embedding_scaling: bool = False
    window_size: tuple[int, int] | None = None
    init_method_std: float = 0.02
    num_moe_experts: int | None = None
    moe_router_topk: int = 2
    moe_ffn_hidden_size: int | None = None
    moe_router_pre_softmax: bool = False
    moe_router_load_balancing_type: str = "aux_loss"
    moe_aux_loss_coeff: float = 0.0
    moe_z_loss_coeff: float | None = None
    moe_input_jitter_eps: float | None = None
    moe_token_dropping: bool = False
    moe_layer_freq: int = 1
    moe_shared_expert_intermediate_size: int | None = None
    transformer_block_type: str = "pre_ln"
    name: str = ""
    """NeMo's name of a layer that is not megatron-core's own."""
    new_decoder_architecture: bool = False
    parallel_attention: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    query_pre_attn_scalar: float | None = None
    num_attributes: int = 0
    """Outputs of a reward head; 0 without one. The tensors tell, not model_config.yaml."""

    @classmethod
    def from_nemo(cls, config: Mapping[str, Any]) -> Architecture:
        """Return the architecture a resolved ``model_config.yaml`` describes.

        Raises:
            ContentError: when a size without a default is absent or a value has the wrong type.
        """
        known = {f.name for f in fields(cls)}
        custom: Any = config.get("mcore_customization_config")
        # NeMo sets these last, over everything else.
        config = {**config, **(cast("Fields", custom) if isinstance(custom, Mapping) else {})}
        given = {key: value for key, value in config.items() if key in known and value is not None}
        required = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
        missing = [name for name in required if name not in given]
        if missing:
            raise ContentError(
                f"model_config.yaml lacks {', '.join(missing)}; this is no GPT configuration."
            )
        if "window_size" in given:
            given["window_size"] = _window(given["window_size"])
        try:
            return cls(**{n: typed_value(_KINDS[n], n, value) for n, value in given.items()})
        except (TypeError, ValueError) as error:
            raise ContentError(f"model_config.yaml: {error}") from error

    @property
    def query_groups(self) -> int:
        """Key/value heads; equal to the attention heads without grouped-query attention."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head (``kv_channels``, else hidden size / heads)."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def qkv_rows(self) -> int:
        """Rows of ``linear_qkv``: every query head plus one key and one value head per group."""
        return (self.num_attention_heads + 2 * self.query_groups) * self.head_dim

    @property
    def gated(self) -> bool:
        """True when ``linear_fc1`` holds [gate; up]."""
        return self.activation in GATED

    @property
    def gelu_is_tanh(self) -> bool:
        """True when gelu is its tanh form: by ``openai_gelu``, or because the fused kernel computes that."""
        is_gelu = self.activation.lower() in ("gelu", "geglu", "fast-geglu")
        is_fused = self.bias_activation_fusion and (self.gated or self.bias)
        return self.openai_gelu or (is_gelu and is_fused)

    @property
    def layer_spec(self) -> str:
        """NeMo's name of the layer where it computes something else than megatron-core's own."""
        return self.name if self.name in OWN_LAYERS else ""

    @property
    def has_mlp_norm(self) -> bool:
        """False where MLP and attention share one norm, as in Falcon 7B."""
        shares = self.parallel_attention and not self.new_decoder_architecture
        return not (self.layer_spec == FALCON and shares)

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key and one value head."""
        return self.num_attention_heads // self.query_groups

    @property
    def heads_fill_hidden(self) -> bool:
        """True when the heads together are as wide as the model."""
        return self.num_attention_heads * self.head_dim == self.hidden_size

    @property
    def has_post_norms(self) -> bool:
        """True when the outputs of attention and MLP are normalised before they are added."""
        return self.name == GEMMA2

    @property
    def has_experts(self) -> bool:
        """True when experts take the place of the MLP."""
        return bool(self.num_moe_experts)

    @property
    def expert_width(self) -> int:
        """Feed-forward width of one expert."""
        return self.moe_ffn_hidden_size or self.ffn_hidden_size

    def padded_vocab_size(self, vocab_size: int, tp: int = 1) -> int:
        """Rows of the embedding at tensor-parallel size ``tp`` (``_vocab_size_with_padding``)."""
        if self.override_vocab_size is not None and self.override_vocab_size % tp == 0:
            return self.override_vocab_size
        multiple = self.make_vocab_size_divisible_by * tp
        return -(-vocab_size // multiple) * multiple


def _window(sides: Sequence[int | None]) -> tuple[int, int] | None:
    """Return a sliding window; no left side, or Transformer Engine's -1, is none at all."""
    left, right = tuple(sides)
    return None if left is None or left < 0 else (int(left), int(right or 0))


_KINDS = {f.name: str(f.type) for f in fields(Architecture)}


def typed_value(kind: str, name: str, value: Any) -> Any:
    """Return ``value`` as a field's type; YAML writes 10000.0 for an int base and "1e-5" for a float."""
    if kind == "bool":
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}, not true or false.")
        return value
    if kind in ("int", "int | None"):
        if isinstance(value, bool) or int(value) != float(value):
            raise TypeError(f"{name} is {value!r}, not a whole number.")
        return int(value)
    if kind in ("float", "float | None"):
        return float(value)
    return value
