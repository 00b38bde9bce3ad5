"""The architecture of a NeMo ViT classifier, typed, with NeMo's names and defaults.

Field names and defaults are those of ``VitBackbone`` and ``MegatronVitClassificationModel`` of NeMo
1.23 and 2.0; an absent ``class_token_length`` means 8, an absent ``finetune`` the pretraining head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from nemoalign.config.architecture import typed_value
from nemoalign.errors import ContentError

FAST_GATED = ("fast-geglu", "fast-swiglu", "fast-reglu")
"""Activations whose gate and up projections are one tensor of twice the rows."""

GATED = ("geglu", "swiglu", "reglu")
"""Activations whose up projection is a tensor of its own."""


@dataclass(frozen=True, kw_only=True)
class VitArchitecture:
    """Everything that decides shapes and arithmetic of a ViT classifier."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    img_h: int
    img_w: int
    patch_dim: int
    num_classes: int
    num_channels: int = 3
    class_token_length: int = 8
    finetune: bool = False
    kv_channels: int | None = None
    normalization: str = "layernorm"
    layernorm_epsilon: float = 1e-5
    activation: str = "gelu"
    openai_gelu: bool = False
    bias_activation_fusion: bool = False
    layerscale: bool = False
    preprocess_layernorm: bool = False
    position_embedding_type: str = "learned_absolute"
    megatron_legacy: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    init_method_std: float = 0.02
    generation: int = 1
    """1: a linear patch projection with bias (NeMo 1.23); 2: a convolution without (2.0 and later).

    No setting says which; the tensors do.
    """

    @classmethod
    def from_nemo(cls, config: Mapping[str, Any], generation: int = 1) -> VitArchitecture:
        """Return the architecture a resolved ``model_config.yaml`` describes.

        Raises:
            ContentError: when a size without a default is absent or a value has the wrong type.
        """
        kinds = {f.name: str(f.type) for f in fields(cls) if f.name != "generation"}
        given = {n: value for n, value in config.items() if n in kinds and value is not None}
        required = [f.name for f in fields(cls) if f.default is MISSING]
        missing = [name for name in required if name not in given]
        if missing:
            raise ContentError(f"a ViT needs {', '.join(missing)}, which are not set.")
        typed = {name: _typed(kinds[name], name, value) for name, value in given.items()}
        return cls(**typed, generation=generation)

    @property
    def head_dim(self) -> int:
        """Width of one attention head (``kv_channels``, else hidden size / heads)."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def attention_width(self) -> int:
        """Width of all attention heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def num_patches(self) -> int:
        """Patches of one image, row by row."""
        return (self.img_h // self.patch_dim) * (self.img_w // self.patch_dim)

    @property
    def num_positions(self) -> int:
        """Class tokens, which come first, and patches."""
        return self.class_token_length + self.num_patches

    @property
    def has_tanh_gelu(self) -> bool:
        """True when NeMo computes gelu by its tanh approximation."""
        return self.openai_gelu or (self.bias_activation_fusion and self.activation == "gelu")


def _typed(kind: str, name: str, value: Any) -> Any:
    if kind == "str" and not isinstance(value, str):
        raise ContentError(f"{name} is {value!r:.60}, which is no word.")
    try:
        return typed_value(kind, name, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ContentError(f"{name} is {value!r:.60}, which no ViT has ({error}).") from error
