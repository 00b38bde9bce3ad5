"""Reading settings of a file somebody downloaded: any value may be of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError

MAX_EXPERTS = 4096
"""More experts than any model has."""

MAX_LAYERS = 10_000
"""More layers than any model has; names are made for every one of them."""

_WORDS = (
    "normalization",
    "activation",
    "position_embedding_type",
    "transformer_block_type",
    "name",
)
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "query_groups")
_SIZES += ("head_dim", "encoder_seq_length", "max_position_embeddings")
_SIZES += ("make_vocab_size_divisible_by",)


def section(config: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a nested mapping of ``config``, empty where there is none."""
    found: Any = config
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def text(config: Mapping[str, Any], name: str) -> str | None:
    """Return a setting that must be text; None for anything else and for no text."""
    value = config.get(name)
    return value if isinstance(value, str) and value else None


def whole_number(config: Mapping[str, Any], name: str, where: str) -> int | None:
    """Return a setting that must be a number above 0, None when it is absent or null.

    Raises:
        ContentError: when it is something else.
    """
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ContentError(f"{where} has {name} {value!r:.60}, which is no number above 0.")
    return value


def read_architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture of a resolved model_config.yaml, its values checked.

    Raises:
        ContentError: when a size is missing or impossible.
    """
    try:
        arch = Architecture.from_nemo(config)
    except (TypeError, ValueError, OverflowError) as error:
        raise ContentError(f"{where}: {error}") from error
    for name in _WORDS:
        if not isinstance(getattr(arch, name), str):
            raise ContentError(f"{where} has {name} {getattr(arch, name)!r:.60}, which is no word.")
    for name in _SIZES:
        limit = MAX_LAYERS if name == "num_layers" else 1 << 31
        if not 0 < getattr(arch, name) <= limit:
            raise ContentError(f"{where} has {name} {getattr(arch, name)}, which no model has.")
    if arch.num_attention_heads % arch.query_groups:
        raise ContentError(
            f"{where} has {arch.num_attention_heads} attention heads in {arch.query_groups} query "
            "groups, which does not divide."
        )
    _check_experts(arch, where)
    return arch


def _check_experts(arch: Architecture, where: str) -> None:
    """Refuse kinds of experts that no tensor table of ours describes."""
    experts, chosen = arch.num_moe_experts, arch.moe_router_topk
    if experts is None:
        return
    if not 0 < chosen <= experts <= MAX_EXPERTS or arch.expert_width < 1:
        raise ContentError(
            f"{where} has {experts} experts of width {arch.expert_width}, of which a token goes to "
            f"{chosen} (num_moe_experts, moe_router_topk); no model has."
        )
    if arch.moe_layer_freq != 1 or arch.moe_shared_expert_intermediate_size:
        raise ContentError(
            f"{where} has {experts} experts together with shared experts or dense layers "
            "(moe_shared_expert_intermediate_size, moe_layer_freq), which is not supported."
        )
