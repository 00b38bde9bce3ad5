"""Open a NeMo ViT classifier: a ``.nemo``, an unpacked one, or one file for each rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nemoalign.archive.files import Container, Region
from nemoalign.archive.store import TensorStore
from nemoalign.checkpoint.settings.values import MAX_LAYERS
from nemoalign.checkpoint.sources.nemo import (
    Settings,
)
from nemoalign.checkpoint.sources.source import KINDS, dtypes_of, rounded
from nemoalign.checkpoint.sources.stores import MadeStore
from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError
from nemoalign.families.vit import FAMILY
from nemoalign.weights.vit_rules import VitFamily
from nemoalign.weights.vit_tensors import vit_rows

VIT_CLASS = "MegatronVitClassificationModel"
PARTS = ("embedding", "attention", "mlp", "norms", "head")

_SIZES = tuple(f.name for f in fields(VitArchitecture) if f.type == "int")
_MAX_SIZE = 1 << 31


@dataclass(frozen=True, kw_only=True)
class VitSource:
    """A ViT classifier ready to be read; nothing of the weights has been read yet.

    It is to a ViT what ``Source`` is to a language model: ``weights`` has the canonical names of
    ``weights.vit_tensors``, whole, in raw storage, query_key_value always as [heads, 3, width].
    """

    path: Path
    kind: str
    layout: str
    config: dict[str, Any]
    stored_config: dict[str, Any]
    arch: VitArchitecture
    weights: TensorStore
    files: Mapping[str, Region]
    hf_config: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    folder: Path | None = None
    container: Container | None = None
    """Its files, where they are not simply those at ``path``."""
    family: VitFamily = FAMILY
    adapter: None = None

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The element types of the weights, the one with most elements first."""
        return dtypes_of(self.weights)

    @property
    def head(self) -> str:
        """What the head is, in the words of a person."""
        return "classifier" if self.arch.finetune else "pretraining head"

    def parameters(self) -> dict[str, int]:
        """Return the number of parameters by part of the model."""
        counts: dict[str, int] = dict.fromkeys(PARTS, 0)
        for name, row in vit_rows(self.arch).items():
            counts[row.part] += math.prod(self.weights.tensors[name].shape)
        return counts | {"total": sum(counts.values())}

    def facts(self) -> dict[str, Any]:
        """Return what a conversion report says of its source."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "layout": self.layout,
            "family": self.family.name,
            "generation": self.arch.generation,
            "dtypes": list(self.dtypes),
        }

    def describe(self) -> str:
        """Return what this is, in one line."""
        arch = self.arch
        words = [
            f"{KINDS[self.kind]} ({self.layout})",
            f"vit {self.head} of {arch.num_classes} classes",
            f"{arch.num_layers} layers of width {arch.hidden_size}",
            f"{arch.img_h}x{arch.img_w} images in patches of {arch.patch_dim}",
            f"{rounded(self.parameters()['total'])} parameters",
            "/".join(self.dtypes),
        ]
        return f"{self.path}: {', '.join(words)}"


def is_vit(config: Mapping[str, Any]) -> bool:
    """True for the model_config.yaml of a NeMo ViT classifier; ``target`` is a label, no import."""
    target = config.get("target")
    if isinstance(target, str) and target:
        return target.rpartition(".")[2] == VIT_CLASS
    return "patch_dim" in config and "num_classes" in config


def vit_of(path: Path, kind: str, settings: Settings) -> VitSource:
    """Return the ViT that a configuration describes, its weights to be given to ``with_shards``."""
    return VitSource(
        path=path,
        kind=kind,
        layout="",
        config=settings.resolved,
        stored_config=settings.stored,
        arch=read_vit_architecture(settings.resolved, settings.where),
        weights=MadeStore({}),
        files={},
    )


def read_vit_architecture(config: Mapping[str, Any], where: str) -> VitArchitecture:
    """Return the architecture of a resolved configuration, its values checked.

    Raises:
        ContentError: when a size is missing or impossible, or the model is cut in stages.
    """
    try:
        arch = VitArchitecture.from_nemo(config)
    except ContentError as error:
        raise ContentError(f"{where}: {error}") from error
    for name in (*_SIZES, "head_dim"):
        limit = MAX_LAYERS if name == "num_layers" else _MAX_SIZE
        if not 0 < getattr(arch, name) <= limit:
            raise ContentError(f"{where} has {name} {getattr(arch, name)}, which no model has.")
    if arch.kv_channels is None and arch.hidden_size % arch.num_attention_heads:
        raise ContentError(
            f"{where} has a hidden size of {arch.hidden_size}, which {arch.num_attention_heads} "
            "heads do not divide."
        )
    if arch.img_h % arch.patch_dim or arch.img_w % arch.patch_dim:
        raise ContentError(
            f"{where} has images of {arch.img_h}x{arch.img_w}, which patches of {arch.patch_dim} "
            "do not divide."
        )
    if arch.position_embedding_type not in ("learned_absolute", "learned_parameters"):
        raise ContentError(
            f"{where} has position_embedding_type {arch.position_embedding_type!r:.60}; a ViT has "
            "learned_absolute or learned_parameters."
        )
    return arch
