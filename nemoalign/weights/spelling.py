"""How rank files spell tensor names: the way back from canonical names to keys on disk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nemoalign.config.architecture import FALCON, Architecture
from nemoalign.weights.legacy import is_legacy
from nemoalign.weights.names import layer_of

_LOCAL = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
)
_FALCON = (_LOCAL[0], ("mlp.linear_fc1.layer_norm_", "post_self_attn_layernorm."))
_LEGACY = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    ("self_attention.linear_qkv.", "self_attention.query_key_value."),
    ("self_attention.linear_proj.", "self_attention.dense."),
    ("mlp.linear_fc1.layer_norm_", "post_attention_layernorm."),
    ("mlp.linear_fc1.", "mlp.dense_h_to_4h."),
    ("mlp.linear_fc2.", "mlp.dense_4h_to_h."),
)
_WHOLE_LAYER = (
    ("self_attention.linear_qkv.", "self_attention.layernorm_qkv."),
    ("self_attention.linear_proj.", "self_attention.proj."),
    ("mlp.linear_fc1.layer_norm_", "layernorm_mlp.layer_norm_"),
    ("mlp.linear_fc1.", "layernorm_mlp.fc1_"),
    ("mlp.linear_fc2.", "layernorm_mlp.fc2_"),
)
LAYERS: Mapping[str, Sequence[tuple[str, str]]] = {
    "fused": (),
    "local": _LOCAL,
    "falcon": _FALCON,
    "legacy": _LEGACY,
    "whole": _WHOLE_LAYER,
}
"""Names inside a layer: Transformer Engine's linear layers with the norm before them (canonical),
megatron-core's local modules, NeMo's Falcon whose MLP follows attention, NeMo's own GPT, Transformer
Engine's whole layer."""

_LOCAL_EXPERT = re.compile(r"^mlp\.experts\.local_experts\.(\d+)\.(.*)$")
_GROUPED_EXPERT = re.compile(r"\.mlp\.experts\.linear_fc[12]\.weight\d+$")

_LEGACY_MODEL = (
    ("embedding.", "language_model.embedding."),
    ("decoder.", "language_model.encoder."),
    ("output_layer.", "language_model.output_layer."),
)


def layers_of(arch: Architecture, *, fused: bool = True) -> str:
    """Return how NeMo spells the layers of ``arch``, whose norms are fused where they can be."""
    if arch.layer_spec != FALCON:
        return "fused" if fused else "local"
    return "local" if arch.new_decoder_architecture or arch.parallel_attention else "falcon"


def spelled(name: str, arch: Architecture) -> str:
    """Return a canonical name as NeMo's modules of today spell it."""
    layer = layer_of(name)
    if layer is None:
        return name
    lead, _, rest = name.partition(f"layers.{layer}.")
    return f"{lead}layers.{layer}.{_replaced(rest, LAYERS[layers_of(arch)])}"


@dataclass(frozen=True)
class Spelling:
    """The names of one generation of modules.

    ``legacy`` are those around the layers of NeMo's own GPT, from before megatron-core;
    ``separate_gate`` keeps the two halves of a gated matrix as tensors of their own, and
    ``grouped_experts`` numbers experts as Transformer Engine's grouped layers do.
    """

    layers: str = "fused"
    legacy: bool = False
    separate_gate: bool = False
    grouped_experts: bool = False

    def keys(self, name: str, first_layer: int = 0) -> tuple[str, ...]:
        """Return the key of a canonical tensor in the file of a stage that begins at ``first_layer``.

        Two keys mean that the tensor's rows are halved between them.
        """
        layer = layer_of(name)
        if layer is not None:
            lead, _, rest = name.partition(f"layers.{layer}.")
            if self.grouped_experts:
                rest = _LOCAL_EXPERT.sub(r"mlp.experts.\2\1", rest)
            name = f"{lead}layers.{layer - first_layer}.{_replaced(rest, LAYERS[self.layers])}"
        key = f"model.{_replaced(name, _LEGACY_MODEL) if self.legacy else name}"
        if self.separate_gate and ".dense_h_to_4h." in key:
            return key, key.replace(".dense_h_to_4h.", ".dense_h_to_4h_2.")
        return (key,)

    @property
    def tied_copy(self) -> str:
        """The key under which a last stage repeats the word embedding it uses as output layer."""
        return f"model.{'word_embeddings' if self.legacy else 'output_layer'}.weight"


def spelling_of(keys: Iterable[str]) -> Spelling:
    """Return the spelling in which these keys of a rank's file are written."""
    keys = list(keys)
    legacy = any(is_legacy(key) for key in keys)
    if _any_has(keys, ".layernorm_qkv."):
        layers = "whole"
    elif legacy:
        layers = "legacy"
    else:
        separate = "falcon" if _any_has(keys, ".post_self_attn_layernorm.") else "local"
        layers = separate if _any_has(keys, ".input_layernorm.") else "fused"
    return Spelling(
        layers,
        legacy,
        separate_gate=_any_has(keys, ".dense_h_to_4h_2."),
        grouped_experts=any(_GROUPED_EXPERT.search(key) for key in keys),
    )


def _any_has(keys: Iterable[str], part: str) -> bool:
    return any(part in key for key in keys)


def _replaced(name: str, table: Sequence[tuple[str, str]]) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
