"""Spellings of tensor names on disk, and the one canonical spelling: no prefix, fused norm names.

A checkpoint may prefix its keys (``model.``, ``model.module.``, ``module.``), stack all layers in one
tensor (no layer number), name norms as modules of their own, nest dictionaries (levels are joined by
``/``) and have names from before megatron-core; all that is settled here and in ``legacy``, once.
"""

from __future__ import annotations

import re

from nemoalign.weights.legacy import modern_name

PREFIXES = ("model.module.", "module.", "model.")
"""Prefixes a checkpoint may put before a module's own names, longest first."""

PREFIX = "model."
"""The one that NeMo writes."""

_IGNORED_PARTS = ("_extra_state",)
_IGNORED_ENDS = ("rotary_pos_emb.inv_freq",)
_IGNORED_STARTS = ("optimizer.", "chained_", "rng_state", "rerun_state")
RENAMES = (
    (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_"),
    (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_"),
)
"""Norms as modules of their own, and as Transformer Engine fuses them; the latter is canonical."""

_EXPERT = re.compile(r"\.experts\.experts\.(?=\d+\.)")
"""Experts under keys of their own, numbered globally: ``singleton_local_shards`` writes them so."""


def canonical_name(key: str) -> str | None:
    """Return the canonical name of a key on disk, or None for what is not a weight.

    A key that stacks all layers gives a pattern with ``{i}``. Fp8 extra state, rotary buffers and
    optimizer state are no weights.
    """
    key = key.replace("/", ".").replace("_orig_mod.", "")
    if key.startswith(_IGNORED_STARTS) or key.endswith(_IGNORED_ENDS):
        return None
    if any(part in key for part in _IGNORED_PARTS):
        return None
    name = modern_name(_without_prefix(key))
    head, found, rest = name.partition("decoder.layers.")
    if found and not head and not rest.partition(".")[0].isdigit():
        name = f"decoder.layers.{{i}}.{rest}"
    for module, fused in RENAMES:
        name = name.replace(module, fused)
    return _EXPERT.sub(".experts.local_experts.", name)


def stacked_key(name: str) -> tuple[str, int | None]:
    """Return the key under which a ``.nemo`` stacks a canonical tensor, and its layer (None: unstacked)."""
    head, found, rest = name.partition("decoder.layers.")
    number, _, tail = rest.partition(".")
    if not found or head or not number.isdigit():
        return f"model.{name}", None
    return f"model.decoder.layers.{tail}", int(number)


def with_layer(name: str, layer: int) -> str:
    """Return the name of one layer's tensor for a pattern with ``{i}``."""
    return name.replace("{i}", str(layer))


def layer_of(name: str) -> int | None:
    """Return the layer number in a canonical name, or None."""
    return stacked_key(name)[1]


def is_adapter(name: str) -> bool:
    """True for a tensor of a LoRA adapter."""
    return ".adapter_layer." in name


def _without_prefix(key: str) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key
