"""Which tensors a NeMo ViT classifier has, their shapes and how tensor parallelism cuts them.

The canonical names are NeMo's own, without the ``model.`` before them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from nemoalign.config.vit import FAST_GATED, GATED, VitArchitecture
from nemoalign.errors import ContentError
from nemoalign.weights.splits import COLUMNS, GATED_ROWS, REPLICATED, ROWS, Split
from nemoalign.weights.tensors import TensorRow

CONV = "backbone.conv1.weight"
"""The patch projection of the second generation, by which it is told from the first."""

_CONDITIONS: Mapping[str, Callable[[VitArchitecture], bool]] = {
    "always": lambda arch: True,
    "generation_1": lambda arch: arch.generation == 1,
    "generation_2": lambda arch: arch.generation == 2,
    "learned_absolute": lambda arch: arch.position_embedding_type == "learned_absolute",
    "learned_parameters": lambda arch: arch.position_embedding_type == "learned_parameters",
    "norm_bias": lambda arch: arch.normalization != "rmsnorm",
    "preprocess": lambda arch: arch.preprocess_layernorm,
    "preprocess_bias": lambda arch: arch.preprocess_layernorm and arch.normalization != "rmsnorm",
    "one_fc1": lambda arch: arch.activation not in FAST_GATED,
    "fast_gated": lambda arch: arch.activation in FAST_GATED,
    "gated": lambda arch: arch.activation in GATED,
    "layerscale": lambda arch: arch.layerscale,
    "classifier": lambda arch: arch.finetune,
    "pretraining": lambda arch: not arch.finetune,
}

_SIZES: Mapping[str, Callable[[VitArchitecture], int]] = {
    "1": lambda arch: 1,
    "k": lambda arch: arch.class_token_length,
    "s": lambda arch: arch.num_positions,
    "h": lambda arch: arch.hidden_size,
    "c": lambda arch: arch.num_channels,
    "e": lambda arch: arch.patch_dim,
    "p": lambda arch: arch.patch_dim**2 * arch.num_channels,
    "q": lambda arch: 3 * arch.attention_width,
    "a": lambda arch: arch.attention_width,
    "f": lambda arch: arch.ffn_hidden_size,
    "g": lambda arch: 2 * arch.ffn_hidden_size,
    "n": lambda arch: arch.num_classes,
}
"""Letters of a shape: k class tokens, s positions, h hidden, c channels, e edge of a patch, p values
of a patch, q rows of query_key_value, a all heads, f feed-forward width, g twice that, n classes."""

_LAYER = "backbone.transformer.layers.{i}."
_ATTENTION = _LAYER + "self_attention."
_MLP = _LAYER + "mlp."

VIT_TENSORS = (
    TensorRow("backbone.cls_token", "1kh", REPLICATED, "embedding"),
    TensorRow("backbone.linear_encoder.weight", "hp", REPLICATED, "embedding", "generation_1"),
    TensorRow("backbone.linear_encoder.bias", "h", REPLICATED, "embedding", "generation_1"),
    TensorRow(CONV, "hcee", REPLICATED, "embedding", "generation_2"),
    TensorRow(
        "backbone.position_embeddings.weight", "sh", REPLICATED, "embedding", "learned_absolute"
    ),
    TensorRow("backbone.position_embeddings", "sh", REPLICATED, "embedding", "learned_parameters"),
    TensorRow("backbone.preprocess_layernorm.weight", "h", REPLICATED, "norms", "preprocess"),
    TensorRow("backbone.preprocess_layernorm.bias", "h", REPLICATED, "norms", "preprocess_bias"),
    TensorRow(_LAYER + "input_layernorm.weight", "h", REPLICATED, "norms"),
    TensorRow(_LAYER + "input_layernorm.bias", "h", REPLICATED, "norms", "norm_bias"),
    TensorRow(_ATTENTION + "query_key_value.weight", "qh", ROWS, "attention"),
    TensorRow(_ATTENTION + "query_key_value.bias", "q", ROWS, "attention"),
    TensorRow(_ATTENTION + "dense.weight", "ha", COLUMNS, "attention"),
    TensorRow(_ATTENTION + "dense.bias", "h", REPLICATED, "attention"),
    TensorRow(
        _LAYER + "post_attention_layerscale.gamma", "h", REPLICATED, "attention", "layerscale"
    ),
    TensorRow(_LAYER + "post_attention_layernorm.weight", "h", REPLICATED, "norms"),
    TensorRow(_LAYER + "post_attention_layernorm.bias", "h", REPLICATED, "norms", "norm_bias"),
    TensorRow(_MLP + "dense_h_to_4h.weight", "fh", ROWS, "mlp", "one_fc1"),
    TensorRow(_MLP + "dense_h_to_4h.bias", "f", ROWS, "mlp", "one_fc1"),
    TensorRow(_MLP + "dense_h_to_4h.weight", "gh", GATED_ROWS, "mlp", "fast_gated"),
    TensorRow(_MLP + "dense_h_to_4h.bias", "g", GATED_ROWS, "mlp", "fast_gated"),
    TensorRow(_MLP + "dense_h_to_4h_2.weight", "fh", ROWS, "mlp", "gated"),
    TensorRow(_MLP + "dense_h_to_4h_2.bias", "f", ROWS, "mlp", "gated"),
    TensorRow(_MLP + "dense_4h_to_h.weight", "hf", COLUMNS, "mlp"),
    TensorRow(_MLP + "dense_4h_to_h.bias", "h", REPLICATED, "mlp"),
    TensorRow(_LAYER + "post_mlp_layerscale.gamma", "h", REPLICATED, "mlp", "layerscale"),
    TensorRow("backbone.transformer.final_layernorm.weight", "h", REPLICATED, "norms"),
    TensorRow("backbone.transformer.final_layernorm.bias", "h", REPLICATED, "norms", "norm_bias"),
    TensorRow("head.weight", "nh", REPLICATED, "head", "classifier"),
    TensorRow("head.bias", "n", REPLICATED, "head", "classifier"),
    TensorRow("head.dense_in.weight", "hh", REPLICATED, "head", "pretraining"),
    TensorRow("head.dense_in.bias", "h", REPLICATED, "head", "pretraining"),
    TensorRow("head.dense_out.weight", "nh", REPLICATED, "head", "pretraining"),
    TensorRow("head.dense_out.bias", "n", REPLICATED, "head", "pretraining"),
)

_NUMBER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


def vit_rows(arch: VitArchitecture) -> dict[str, TensorRow]:
    """Return the row of every tensor of the model by canonical name, in the order of the model."""
    rows = [row for row in VIT_TENSORS if _CONDITIONS[row.when](arch)]
    layered = [row for row in rows if "{i}" in row.name]
    first, last = rows.index(layered[0]), rows.index(layered[-1])
    named = {row.name: row for row in rows[:first]}
    for layer in range(arch.num_layers):
        named |= {row.name.replace("{i}", str(layer)): row for row in layered}
    return named | {row.name: row for row in rows[last + 1 :]}


def vit_shapes(arch: VitArchitecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the model by canonical name, in the order of the model."""
    return {
        name: tuple(_SIZES[letter](arch) for letter in row.shape)
        for name, row in vit_rows(arch).items()
    }


def vit_split(name: str, arch: VitArchitecture) -> Split:
    """Return how tensor parallelism cuts the tensor with this canonical name.

    With ``megatron_legacy`` a rank's query_key_value is [3, heads, width], else [heads, 3, width].

    Raises:
        ContentError: when no row knows the name.
    """
    pattern = vit_pattern(name)
    for row in VIT_TENSORS:
        if row.name == pattern and _CONDITIONS[row.when](arch):
            legacy = arch.megatron_legacy and ".query_key_value." in name
            return Split(0, runs=3) if legacy else row.split
    raise ContentError(f'No rule says how tensor parallelism cuts "{name}".')


def vit_pattern(name: str) -> str:
    """Return the canonical name with ``{i}`` in place of its layer number."""
    return _NUMBER.sub("{i}", name, count=1)
