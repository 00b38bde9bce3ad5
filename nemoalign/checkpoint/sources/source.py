"""One opened checkpoint, whatever it was on disk: configuration, tokenizer files and lazy weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemoalign.archive.files import Container, Region
from nemoalign.archive.store import TensorStore
from nemoalign.config.architecture import Architecture
from nemoalign.weights.names import pattern_of
from nemoalign.weights.rules import Family
from nemoalign.weights.tensors import parts_of

EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"
POSITIONS = "embedding.position_embeddings.weight"

PARTS = ("embedding", "attention", "mlp", "norms", "head", "adapter")

KINDS = {
    "nemo": "NeMo archive",
    "nemo directory": "unpacked NeMo archive",
    "lightning": "Lightning checkpoint",
    "nemo2": "NeMo 2 directory",
    "megatron-lm": "Megatron-LM checkpoint",
    "hf": "Hugging Face model",
    "peft": "PEFT adapter",
}
"""What a source can be, in the words of a person."""


class Described(Protocol):
    """What every kind of opened checkpoint can say of itself."""

    @property
    def config(self) -> dict[str, Any]:
        """NeMo's tree with interpolations resolved."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what a conversion report says of its source."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """A LoRA adapter: its tensors by canonical name, and what decides their strength."""

    dim: int
    alpha: float
    targets: tuple[str, ...]
    base: str | None
    """The path recorded as ``restore_from_path`` when the adapter was trained."""
    weights: TensorStore
    """Also the reward head that was trained with it."""

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.dim


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint ready to be read; nothing of the weights has been read yet.

    ``weights`` has the canonical names of ``weights.tensors``, one tensor per layer, whole (not a
    shard) and in raw storage; for an adapter alone it is empty. ``config`` is NeMo's tree with
    interpolations resolved, also for a Hugging Face model; ``stored_config`` is the tree as stored.
    ``files`` are the tokenizer's files under the names the configuration uses, and the files of the
    original Hugging Face model under ``hf/``.
    """

    path: Path
    kind: str
    layout: str
    config: dict[str, Any]
    stored_config: dict[str, Any]
    arch: Architecture
    family: Family
    vocab_size: int
    weights: TensorStore
    copies: TensorStore
    """Tensors that must repeat the tensor of the same name in ``weights``: a tied output layer."""
    files: Mapping[str, Region]
    hf_config: dict[str, Any] | None = None
    adapter: AdapterInfo | None = None
    warnings: tuple[str, ...] = ()
    legacy_config: dict[str, Any] | None = None
    """The tree as stored, of a model from before megatron-core; ``stored_config`` is upgraded."""
    folder: Path | None = None
    """The folder a person named, when the checkpoint was found inside it."""
    optimizer: TensorStore | None = None
    """State of the optimizer as whole tensors, where it is stored by name: ``exp_avg.``,
    ``exp_avg_sq.`` or another slot, and the canonical name of the weight it belongs to."""
    container: Container | None = None
    """Its files, where ``path`` is the name that the files of several ranks share."""

    @property
    def is_adapter_only(self) -> bool:
        """True when there is an adapter and no base model."""
        return self.adapter is not None and not self.weights.tensors

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The element types of the weights, the one with most elements first."""
        store = self.adapter.weights if self.adapter and self.is_adapter_only else self.weights
        return dtypes_of(store)

    def parameters(self) -> dict[str, int]:
        """Return the number of parameters by part of the model, without vocabulary padding.

        With experts, ``active`` counts what one token goes through.
        """
        parts = parts_of(self.arch)
        counts: dict[str, int] = dict.fromkeys((*PARTS, *parts.values()), 0)
        for name, info in self.weights.tensors.items():
            padded = name in (EMBEDDING, HEAD)
            shape = (self.vocab_size, *info.shape[1:]) if padded else info.shape
            counts[parts[pattern_of(name)]] += math.prod(shape)
        if self.adapter is not None:
            counts["adapter"] = sum(info.size for info in self.adapter.weights.tensors.values())
        counts["total"] = total = sum(counts.values())
        experts = self.arch.num_moe_experts
        if experts:
            idle = counts["experts"] * (experts - self.arch.moe_router_topk) // experts
            counts["active"] = total - idle
        return counts

    def facts(self) -> dict[str, Any]:
        """Return what a conversion report says of its source."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "layout": self.layout,
            "family": self.family.name,
            "vocab_size": self.vocab_size,
            "dtypes": list(self.dtypes),
        }

    def describe(self) -> str:
        """Return what this is, in one line."""
        kind = "reward model" if self.arch.num_attributes else "model"
        alone = f"LoRA adapter{' of a reward model' if self.arch.num_attributes else ''}"
        what = alone if self.is_adapter_only else f"{self.family.name} {kind}"
        total = self.parameters()["total"]
        words = [
            f"{KINDS[self.kind]} ({self.layout})",
            what,
            f"{self.arch.num_layers} layers of width {self.arch.hidden_size}",
            f"{rounded(total)} parameters",
            "/".join(self.dtypes),
        ]
        return f"{self.path}: {', '.join(words)}"


def dtypes_of(store: TensorStore) -> tuple[str, ...]:
    """Return the element types of all tensors, the one with most elements first."""
    elements: dict[str, int] = {}
    for info in store.tensors.values():
        elements[info.dtype] = elements.get(info.dtype, 0) + math.prod(info.shape)
    return tuple(sorted(elements, key=lambda name: -elements[name]))


def rounded(count: int) -> str:
    """Return a large number in three digits and a word."""
    for unit, size in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
