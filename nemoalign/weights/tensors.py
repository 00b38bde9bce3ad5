"""Which tensors a megatron-core GPT has, their shapes and how tensor parallelism cuts them.

One table by canonical name: Transformer Engine's fused names, per layer, no prefix. It depends on the
architecture alone, so any GPT archive can be read, also one of a family Hugging Face does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.names import pattern_of, with_numbers
from nemoalign.weights.splits import COLUMNS, GATED_ROWS, REPLICATED, ROWS, Split

CONDITIONS: Mapping[str, Callable[[Architecture], bool]] = {
    "always": lambda arch: True,
    "untied": lambda arch: not arch.share_embeddings_and_output_weights,
    "learned_positions": lambda arch: arch.position_embedding_type == "learned_absolute",
    "norm_bias": lambda arch: _has_norm_bias(arch),
    "bias": lambda arch: arch.bias,
    "qkv_bias": lambda arch: arch.bias or arch.qkv_bias,
    "qk_layernorm": lambda arch: arch.qk_layernorm,
    "post_norms": lambda arch: arch.has_post_norms,
    "reward_head": lambda arch: arch.num_attributes > 0,
    "dense": lambda arch: not arch.num_moe_experts,
    "dense_norm": lambda arch: arch.has_mlp_norm and not arch.num_moe_experts,
    "dense_norm_bias": lambda arch: _has_norm_bias(arch) and holds("dense_norm", arch),
    "new_decoder": lambda arch: arch.new_decoder_architecture,
    "old_decoder": lambda arch: not arch.new_decoder_architecture,
    "dense_bias": lambda arch: arch.bias and not arch.num_moe_experts,
    "experts": lambda arch: bool(arch.num_moe_experts),
    "experts_norm_bias": lambda arch: _has_norm_bias(arch) and bool(arch.num_moe_experts),
    "experts_bias": lambda arch: arch.bias and bool(arch.num_moe_experts),
}
"""What an architecture may have; rows of families name these in ``when``."""

_SIZES: Mapping[str, Callable[[Architecture], int]] = {
    "h": lambda arch: arch.hidden_size,
    "p": lambda arch: arch.encoder_seq_length,
    "q": lambda arch: arch.qkv_rows,
    "a": lambda arch: arch.num_attention_heads * arch.head_dim,
    "d": lambda arch: arch.head_dim,
    "f": lambda arch: arch.ffn_hidden_size,
    "g": lambda arch: arch.ffn_hidden_size * (2 if arch.gated else 1),
    "r": lambda arch: arch.num_attributes,
    "e": lambda arch: arch.num_moe_experts or 0,
    "m": lambda arch: arch.expert_width,
    "n": lambda arch: arch.expert_width * (2 if arch.gated else 1),
}


@dataclass(frozen=True)
class TensorRow:
    """One tensor (or one per layer): name, shape in letters, cut, part of the model, condition.

    Letters: v vocabulary rows, h hidden, p positions, q rows of linear_qkv, a heads x head width,
    d head width, f feed-forward width, g rows of linear_fc1 (2f when gated), e experts, m and n
    what f and g are, in an expert, r outputs of a reward head. Names hold ``{i}`` for the layer and
    ``{e}`` for the expert.
    """

    name: str
    shape: str
    split: Split
    part: str
    when: str = "always"


_ATTENTION = "decoder.layers.{i}.self_attention."
_MLP = "decoder.layers.{i}.mlp."
_EXPERT = _MLP + "experts.local_experts.{e}."
_EXPERT_NORM = "decoder.layers.{i}.pre_mlp_layernorm."

GPT_TENSORS = (
    TensorRow("embedding.word_embeddings.weight", "vh", ROWS, "embedding"),
    TensorRow(
        "embedding.position_embeddings.weight", "ph", REPLICATED, "embedding", "learned_positions"
    ),
    TensorRow(_ATTENTION + "linear_qkv.layer_norm_weight", "h", REPLICATED, "norms"),
    TensorRow(_ATTENTION + "linear_qkv.layer_norm_bias", "h", REPLICATED, "norms", "norm_bias"),
    TensorRow(_ATTENTION + "linear_qkv.weight", "qh", ROWS, "attention"),
    TensorRow(_ATTENTION + "linear_qkv.bias", "q", ROWS, "attention", "qkv_bias"),
    TensorRow(_ATTENTION + "q_layernorm.weight", "d", REPLICATED, "norms", "qk_layernorm"),
    TensorRow(_ATTENTION + "k_layernorm.weight", "d", REPLICATED, "norms", "qk_layernorm"),
    TensorRow(_ATTENTION + "linear_proj.weight", "ha", COLUMNS, "attention"),
    TensorRow(_ATTENTION + "linear_proj.bias", "h", REPLICATED, "attention", "bias"),
    TensorRow(
        _ATTENTION + "linear_proj.post_layernorm.weight", "h", REPLICATED, "norms", "post_norms"
    ),
    TensorRow(_MLP + "linear_fc1.layer_norm_weight", "h", REPLICATED, "norms", "dense_norm"),
    TensorRow(_MLP + "linear_fc1.layer_norm_bias", "h", REPLICATED, "norms", "dense_norm_bias"),
    TensorRow(_MLP + "linear_fc1.weight", "gh", GATED_ROWS, "mlp", "dense"),
    TensorRow(_MLP + "linear_fc1.bias", "g", GATED_ROWS, "mlp", "dense_bias"),
    TensorRow(_MLP + "linear_fc2.weight", "hf", COLUMNS, "mlp", "dense"),
    TensorRow(_MLP + "linear_fc2.bias", "h", REPLICATED, "mlp", "dense_bias"),
    TensorRow(_MLP + "linear_fc2.post_layernorm.weight", "h", REPLICATED, "norms", "post_norms"),
    TensorRow(_EXPERT_NORM + "weight", "h", REPLICATED, "norms", "experts"),
    TensorRow(_EXPERT_NORM + "bias", "h", REPLICATED, "norms", "experts_norm_bias"),
    TensorRow(_MLP + "router.weight", "eh", REPLICATED, "router", "experts"),
    TensorRow(_EXPERT + "linear_fc1.weight", "nh", GATED_ROWS, "experts", "experts"),
    TensorRow(_EXPERT + "linear_fc1.bias", "n", GATED_ROWS, "experts", "experts_bias"),
    TensorRow(_EXPERT + "linear_fc2.weight", "hm", COLUMNS, "experts", "experts"),
    TensorRow(_EXPERT + "linear_fc2.bias", "h", REPLICATED, "experts", "experts_bias"),
    TensorRow("decoder.final_layernorm.weight", "h", REPLICATED, "norms"),
    TensorRow("decoder.final_layernorm.bias", "h", REPLICATED, "norms", "norm_bias"),
    TensorRow("output_layer.weight", "vh", ROWS, "head", "untied"),
    TensorRow("rm_head.weight", "rh", COLUMNS, "reward head", "reward_head"),
    TensorRow("rm_head.bias", "r", REPLICATED, "reward head", "reward_head"),
)

# linear_in of a column-parallel layer is cut along the adapter's rank, of a row-parallel layer along
# its input; linear_out is always cut by rows, per half for a gated fc1.
_QKV_LORA = _ATTENTION + "adapter_layer.lora_kqv_adapter."
_PROJ_LORA = _ATTENTION + "adapter_layer.lora_dense_attention_adapter."
_FC1_LORA = _MLP + "adapter_layer.lora_hto4h_adapter."
_FC2_LORA = _MLP + "adapter_layer.lora_4htoh_adapter."
_UNFUSED_QKV = _ATTENTION + "adapter_layer.lora_unfused_kqv_adapter."
_UNFUSED_FC1 = _MLP + "adapter_layer.lora_unfused_hto4h_adapter."

ADAPTER_SPLITS: Mapping[str, Split] = {
    _QKV_LORA + "linear_in.weight": ROWS,
    _QKV_LORA + "linear_out.weight": ROWS,
    _PROJ_LORA + "linear_in.weight": COLUMNS,
    _PROJ_LORA + "linear_out.weight": ROWS,
    _FC1_LORA + "linear_in.weight": ROWS,
    _FC1_LORA + "linear_out.weight": GATED_ROWS,
    _FC2_LORA + "linear_in.weight": COLUMNS,
    _FC2_LORA + "linear_out.weight": ROWS,
    **{
        f"{prefix}{part}_adapter.{side}.weight": ROWS
        for prefix, parts in ((_UNFUSED_QKV, "q k v"), (_UNFUSED_FC1, "gate up"))
        for part in parts.split()
        for side in ("linear_in", "linear_out")
    },
}

SPLITS: Mapping[str, Split] = {**{row.name: row.split for row in GPT_TENSORS}, **ADAPTER_SPLITS}
"""The cut of every canonical tensor, by its name with ``{i}`` for the layer, ``{e}`` for the expert."""


def holds(condition: str, arch: Architecture) -> bool:
    """True when ``arch`` has what the row's ``when`` names."""
    return CONDITIONS[condition](arch)


def tensor_rows(arch: Architecture) -> Iterator[TensorRow]:
    """Yield the rows of the table that a model of ``arch`` has."""
    return (row for row in GPT_TENSORS if holds(row.when, arch))


def tensor_shape(row: TensorRow, arch: Architecture, vocab_rows: int) -> tuple[int, ...]:
    """Return the shape of one tensor of ``row``; ``vocab_rows`` includes padding."""
    return tuple(vocab_rows if letter == "v" else _SIZES[letter](arch) for letter in row.shape)


def expected_shapes(arch: Architecture, vocab_rows: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the model by canonical name, in the order of the model."""
    rows = list(tensor_rows(arch))
    layered = [row for row in rows if "{i}" in row.name]
    first, last = rows.index(layered[0]), rows.index(layered[-1])
    named = [(row.name, row) for row in rows[:first]]
    for layer in range(arch.num_layers):
        for row in layered:
            experts = range(arch.num_moe_experts or 0) if "{e}" in row.name else (None,)
            named += [(with_numbers(row.name, layer, expert), row) for expert in experts]
    named += [(row.name, row) for row in rows[last + 1 :]]
    return {name: tensor_shape(row, arch, vocab_rows) for name, row in named}


def parts_of(arch: Architecture) -> dict[str, str]:
    """Return the part of the model (embedding, attention, mlp, ...) each pattern belongs to."""
    return {row.name: row.part for row in tensor_rows(arch)}


def split_of(name: str, arch: Architecture) -> Split:
    """Return how tensor parallelism cuts the tensor with this canonical name.

    Raises:
        ContentError: when no row knows the name.
    """
    split = SPLITS.get(pattern_of(name))
    if split is None:
        raise ContentError(f'No rule says how tensor parallelism cuts "{name}".')
    return ROWS if split is GATED_ROWS and not arch.gated else split


def _has_norm_bias(arch: Architecture) -> bool:
    return arch.normalization.lower().startswith("layernorm")
