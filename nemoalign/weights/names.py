"""Spellings of tensor names on disk, and the one canonical spelling: no prefix, fused norm names.

A checkpoint may prefix its keys (``model.``, ``model.module.``, ``module.``), stack all layers in one
tensor (no layer number), stack all experts, name norms as modules of their own, nest dictionaries
(levels are joined by ``/``) and have names from before megatron-core; all that is settled here and in
``legacy``, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nemoalign.weights.legacy import modern_name

PREFIXES = ("model.module.", "module.", "model.")
"""Prefixes a checkpoint may put before a module's own names, longest first."""

PREFIX = "model."
"""The one that NeMo writes."""

_IGNORED_PARTS = ("_extra_state",)
_IGNORED_ENDS = ("rotary_pos_emb.inv_freq",)
_IGNORED_STARTS = ("optimizer.", "chained_", "rng_state", "rerun_state")
INPUT_NORM = (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
MLP_NORM = (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_")
RENAMES = (INPUT_NORM, MLP_NORM, (".post_self_attn_layernorm.", MLP_NORM[1]))
"""Norms as modules of their own, and as Transformer Engine fuses them; the latter is canonical.

Only the norm before experts, which nothing can fuse, is a module of its own everywhere.
"""

_EXPERTS = ".mlp.experts."
_LOCAL = ".mlp.experts.local_experts."
_NUMBERS = re.compile(r"decoder\.layers\.(\d+)\.(?:mlp\.experts\.local_experts\.(\d+)\.)?")
_TE_GROUPED = re.compile(r"\.mlp\.experts\.(linear_fc[12])\.(weight|bias)(\d+)$")
_OPTIMIZER = re.compile(r"optimizer\.state\.(\w+)\.(.+)")


def canonical_name(key: str, *, has_experts: bool = False) -> str | None:
    """Return the canonical name of a key on disk, or None for what is not a weight.

    A key that stacks all layers gives a pattern with ``{i}``, one that stacks all experts with
    ``{e}``. Where the MLPs are experts (``has_experts``) their norm is a module of its own; some
    files name it as if it belonged to a dense MLP. Fp8 extra state, rotary buffers, optimizer state and
    the value head of a policy are no weights.
    """
    key = key.replace("/", ".").replace("_orig_mod.", "")
    if key.startswith(_IGNORED_STARTS) or key.endswith(_IGNORED_ENDS):
        return None
    if any(part in key for part in _IGNORED_PARTS):
        return None
    name = modern_name(_without_prefix(key))
    if is_value_head(name):
        return None
    head, found, rest = name.partition("decoder.layers.")
    if found and not head and not rest.partition(".")[0].isdigit():
        name = f"decoder.layers.{{i}}.{rest}"
    for module, fused in RENAMES:
        name = name.replace(module, fused)
    if has_experts:
        own, fused = MLP_NORM
        name = name.replace(fused, own)
    return _local_expert(name) if _EXPERTS in name else name


def _local_expert(name: str) -> str:
    """Return an expert's tensor under ``local_experts``; elsewhere its number stands last, or nowhere."""
    name = _TE_GROUPED.sub(rf"{_LOCAL}\3.\1.\2", name)
    head, doubled, rest = name.partition(".mlp.experts.experts.")
    if not doubled:
        return name
    return f"{head}{_LOCAL}{rest if rest[:1].isdigit() else f'{{e}}.{rest}'}"


def optimizer_name(key: str, *, has_experts: bool = False) -> str | None:
    """Return ``exp_avg.`` or another slot and the canonical name of its weight, None for other keys."""
    match = _OPTIMIZER.fullmatch(key)
    name = canonical_name(match[2], has_experts=has_experts) if match else None
    return f"{match[1]}.{name}" if match and name else None


def names_experts(keys: Iterable[str]) -> bool:
    """True when one of a file's keys belongs to a mixture of experts."""
    return any(_EXPERTS in key for key in keys)


def stacked_key(name: str) -> tuple[str, tuple[int, ...]]:
    """Return the key under which a ``.nemo`` stacks a canonical tensor, and its place in the stack.

    The place is the layer, or the layer and the expert, or nothing for what is not stacked.
    """
    layer, expert = numbers_of(name)
    if layer is None:
        return f"model.{name}", ()
    tail = name.split(".", 3)[3]
    if expert is None:
        return f"model.decoder.layers.{tail}", (layer,)
    tail = tail.split(".", 4)[4]
    return f"model.decoder.layers.mlp.experts.experts.{tail}", (layer, expert)


def with_numbers(name: str, layer: int | None, expert: int | None = None) -> str:
    """Return the name of one tensor for a pattern with ``{i}`` for the layer and ``{e}`` for the expert."""
    filled = name if layer is None else name.replace("{i}", str(layer))
    return filled if expert is None else filled.replace("{e}", str(expert))


def stack_depth(pattern: str) -> int:
    """Return how many leading dimensions of a tensor with this name count layers and experts."""
    return ("{i}" in pattern) + ("{e}" in pattern)


def placed_name(pattern: str, at: Sequence[int]) -> str:
    """Return the name of the tensor at place ``at`` of the stack with this name."""
    numbers = iter(at)
    layer = next(numbers, None) if "{i}" in pattern else None
    return with_numbers(pattern, layer, next(numbers, None) if "{e}" in pattern else None)


def numbers_of(name: str) -> tuple[int | None, int | None]:
    """Return the layer and the expert whose numbers are in a canonical name; None where there is none."""
    match = _NUMBERS.match(name)
    if match is None:
        return None, None
    layer, expert = match.groups()
    return int(layer), None if expert is None else int(expert)


def layer_of(name: str) -> int | None:
    """Return the layer number in a canonical name, or None."""
    return numbers_of(name)[0]


def pattern_of(name: str) -> str:
    """Return the canonical name with ``{i}`` in place of its layer, ``{e}`` of its expert."""
    layer, expert = numbers_of(name)
    if layer is None:
        return name
    rest = name.split(".", 3)[3]
    if expert is not None:
        rest = "mlp.experts.local_experts.{e}." + rest.split(".", 4)[4]
    return f"decoder.layers.{{i}}.{rest}"


def is_adapter(name: str) -> bool:
    """True for a tensor of a LoRA adapter."""
    return ".adapter_layer." in name


def is_reward_head(name: str) -> bool:
    """True for a tensor of a reward model's head."""
    return name.startswith("rm_head.")


def is_value_head(name: str) -> bool:
    """True for a tensor of a policy's value head.

    A run keeps it among its own tensors to go on from. It is no part of the language model, so that no
    archive of the policy holds it.
    """
    return name.startswith("value_head.")


def _without_prefix(key: str) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key
