"""From keys on disk to canonical tensors: every key is taken exactly once, or named."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nemoalign.archive.store import TensorInfo, TensorStore
from nemoalign.checkpoint.sources.grouped import ungrouped
from nemoalign.checkpoint.sources.source import EMBEDDING, HEAD
from nemoalign.checkpoint.sources.stores import Place, fused
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError
from nemoalign.weights.legacy import UNSUPPORTED, is_legacy
from nemoalign.weights.names import (
    canonical_name,
    is_adapter,
    layer_of,
    names_experts,
    optimizer_name,
    pattern_of,
    placed_name,
    stack_depth,
)
from nemoalign.weights.tensors import ADAPTER_SPLITS, expected_shapes

MAX_STACKED = 1 << 20
"""More tensors than any stack of layers and experts holds; a name is made for every one of them."""


@dataclass
class Found:
    """The tensors of one file or directory, sorted into model and adapter, by canonical name."""

    model: dict[str, Place] = field(default_factory=dict[str, Place])
    adapter: dict[str, Place] = field(default_factory=dict[str, Place])
    optimizer: dict[str, Place] = field(default_factory=dict[str, Place])
    """State of the optimizer, where it has names: ``exp_avg.`` and the name of its weight."""
    is_legacy: bool = False
    """True when a key is one of NeMo's own GPT, from before megatron-core."""

    @property
    def num_layers(self) -> int:
        """One more than the highest layer number."""
        layers = [layer_of(name) for name in (*self.model, *self.adapter)]
        return max((layer + 1 for layer in layers if layer is not None), default=0)


def find_tensors(store: TensorStore, where: str) -> Found:
    """Return every tensor of ``store`` under its canonical name; layer numbers are the file's own.

    Raises:
        ContentError: for what only an older GPT has, unknown adapters and doubled tensors.
    """
    found = Found()
    store = ungrouped(fused(store))
    has_experts = names_experts(store.tensors)
    for key in store.tensors:
        state = optimizer_name(key, has_experts=has_experts)
        if state is not None:
            found.optimizer.update(_places(state, key, store))
        name = canonical_name(key, has_experts=has_experts)
        if name is None:
            continue
        if any(part in f".{name}" for part in UNSUPPORTED):
            raise ContentError(
                f'{where} holds "{key}", which only NeMo\'s own GPT from before megatron-core has '
                "(normformer, head scale or cross attention); megatron-core has no place for it."
            )
        found.is_legacy |= is_legacy(key)
        for layer_name, place in _places(name, key, store):
            _add(found.adapter if is_adapter(name) else found.model, layer_name, place, where)
    unknown = [name for name in found.adapter if pattern_of(name) not in ADAPTER_SPLITS]
    if unknown:
        raise ContentError(
            f'{where} holds "{unknown[0]}", an adapter that is not LoRA; only LoRA is supported.'
        )
    return found


def _places(name: str, key: str, store: TensorStore) -> list[tuple[str, Place]]:
    """Return every tensor of a stack of layers, of experts, or of experts in layers."""
    sizes = store.tensors[key].shape[: stack_depth(name)]
    if len(sizes) < stack_depth(name) or math.prod(sizes) > MAX_STACKED:
        raise ContentError(f'"{key}" has shape {list(sizes)}, which is no stack of tensors.')
    stack = itertools.product(*map(range, sizes))
    return [(placed_name(name, at), Place(store, key, at)) for at in stack]


def _add(places: dict[str, Place], name: str, place: Place, where: str) -> None:
    if name in places:
        raise ContentError(
            f'{where} holds "{name}" twice, as "{places[name].key}" and "{place.key}".'
        )
    places[name] = place


def check_tensors(
    tensors: Mapping[str, TensorInfo], arch: Architecture, where: str
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor the architecture has, after comparing them with ``tensors``.

    Raises:
        ContentError: when a tensor is missing or one is there that nothing asks for.
        ShapeError: when a tensor's shape contradicts the configuration.
    """
    if EMBEDDING not in tensors:
        held = ", ".join(list(tensors)[:3]) or "nothing"
        raise ContentError(
            f"{where} has no word embedding, so it is no GPT language model. It holds {held}."
        )
    expected = expected_shapes(arch, tensors[EMBEDDING].shape[0])
    check_names(tensors, expected, where)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ShapeError(
                f'{where}: "{name}" has shape {list(tensors[name].shape)}, but its configuration '
                f"asks for {list(shape)}. One of the two belongs to another model."
            )
    return expected


def check_names(
    tensors: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Compare the names of ``tensors`` with those expected.

    Raises:
        ContentError: when one is missing, or is there and nothing asks for it.
    """
    missing = [name for name in expected if name not in tensors]
    unused = [name for name in tensors if name not in expected]
    if unused:
        near = difflib.get_close_matches(unused[0], missing or expected, n=1, cutoff=0)
        hint = f' Nearest known name: "{near[0]}".' if near else ""
        raise ContentError(
            f'{where} holds "{unused[0]}"{_more(unused)}, which its configuration does not ask '
            f"for.{hint}"
        )
    if missing:
        raise ContentError(
            f'{where} lacks "{missing[0]}"{_more(missing)}, which its configuration asks for '
            f"({len(expected)} tensors). It is incomplete, or model_config.yaml is another model's."
        )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def optimizer_state(found: Found) -> dict[str, Place]:
    """Return the state of the optimizer, empty unless every part is as large as its weight.

    Some writers flatten it over the ranks of data parallelism; then only they can put it together.
    """
    weights = found.model | found.adapter
    for name, place in found.optimizer.items():
        weight = weights.get(name.partition(".")[2])
        if weight is None or weight.info.shape != place.info.shape:
            return {}
    return found.optimizer


def without_copies(found: dict[str, Place], arch: Architecture) -> dict[str, Place]:
    """Take the tied output layer, which a last pipeline stage keeps as well, out of ``found``."""
    if not arch.share_embeddings_and_output_weights or HEAD not in found:
        return {}
    return {EMBEDDING: found.pop(HEAD)}
