"""Names of NeMo's own GPT, from before megatron-core, and of Transformer Engine's whole layers.

Tables only: a prefix of the old name and what stands in its place. They apply to names without
``model.`` prefixes, also to those of adapters, whose own part is the same in both worlds. Gate and up,
where a glu keeps them apart, are one ``dense_h_to_4h`` already.
"""

from __future__ import annotations

from collections.abc import Sequence

_LAYERS = "decoder.layers."

_MODEL = (
    ("language_model.embedding.", "embedding."),
    ("language_model.encoder.", "decoder."),
    ("language_model.transformer.", "decoder."),
    ("language_model.output_layer.", "output_layer."),
    # What a last pipeline stage keeps of tied embeddings.
    ("word_embeddings_for_head.", "output_layer."),
    ("word_embeddings.", "output_layer."),
)
_LAYER = (
    ("attention.", "self_attention."),
    ("self_attention.query_key_value.", "self_attention.linear_qkv."),
    ("self_attention.dense.", "self_attention.linear_proj."),
    ("post_attention_layernorm.", "mlp.linear_fc1.layer_norm_"),
    ("mlp.dense_h_to_4h.", "mlp.linear_fc1."),
    ("mlp.dense_4h_to_h.", "mlp.linear_fc2."),
    # Transformer Engine's TransformerLayer, under legacy and under megatron-core names.
    ("self_attention.layernorm_qkv.", "self_attention.linear_qkv."),
    ("self_attention.proj.", "self_attention.linear_proj."),
    ("layernorm_mlp.layer_norm_", "mlp.linear_fc1.layer_norm_"),
    ("layernorm_mlp.fc1_", "mlp.linear_fc1."),
    ("layernorm_mlp.fc2_", "mlp.linear_fc2."),
)
UNSUPPORTED = ("normformer_norm.", ".mlp.normalization.", ".head_scale_tensor", ".inter_attention.")
"""Parts of names of tensors that megatron-core's GPT has no place for."""


def modern_name(name: str) -> str:
    """Return the name megatron-core would give; a name that is megatron-core's already is kept."""
    name = _replaced(name, _MODEL)
    if not name.startswith(_LAYERS):
        return name
    number, dot, rest = name.removeprefix(_LAYERS).partition(".")
    if number.isdigit():
        return f"{_LAYERS}{number}{dot}{_replaced(rest, _LAYER)}"
    return f"{_LAYERS}{_replaced(name.removeprefix(_LAYERS), _LAYER)}"


def is_legacy(key: str) -> bool:
    """True for a key on disk that only NeMo's own GPT has."""
    return "language_model." in key or "word_embeddings_for_head" in key


def _replaced(name: str, table: Sequence[tuple[str, str]]) -> str:
    for old, new in table:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name
