"""What ``nemoalign inspect`` tells of a ViT."""

from __future__ import annotations

from typing import Any

from nemoalign.checkpoint.settings.values import section
from nemoalign.checkpoint.sources.source import KINDS
from nemoalign.checkpoint.vit.hf_target import hidden_act, reasons_against
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.families.vit import FAMILY

GENERATIONS = {
    1: "1: linear patches with bias, as NeMo 1.23 reads it",
    2: "2: convolution without bias, as NeMo 2.0 and later read it",
}


def inspect_vit(source: VitSource) -> dict[str, Any]:
    """Return everything a person may want to know of a ViT; no weights are read."""
    config = source.config
    against = reasons_against(source.arch)
    return {
        "path": str(source.path),
        "found_in": None if source.folder is None else str(source.folder),
        "what": source.describe(),
        "kind": KINDS[source.kind],
        "family": source.family.name,
        "hf_architecture": None if against else FAMILY.hf_architecture,
        "not_in_hugging_face": against,
        "generation": GENERATIONS[source.arch.generation],
        "sizes": _sizes(source),
        "parameters": source.parameters(),
        "layout": source.layout,
        "saved_with": {
            "tp": config.get("tensor_model_parallel_size", 1),
            "pp": config.get("pipeline_model_parallel_size", 1),
        },
        "dtypes": list(source.dtypes),
        "precision": config.get("precision"),
        "training": _training(source),
        "warnings": list(source.warnings),
    }


def _sizes(source: VitSource) -> dict[str, Any]:
    arch = source.arch
    return {
        "layers": arch.num_layers,
        "hidden": arch.hidden_size,
        "heads": arch.num_attention_heads,
        "head_dim": arch.head_dim,
        "ffn": arch.ffn_hidden_size,
        "image": [arch.img_h, arch.img_w],
        "channels": arch.num_channels,
        "patch": arch.patch_dim,
        "patches": arch.num_patches,
        "class_tokens": arch.class_token_length,
        "positions": arch.position_embedding_type,
        "head": source.head,
        "classes": arch.num_classes,
        "normalization": arch.normalization,
        "activation": hidden_act(arch) or arch.activation,
        "layerscale": arch.layerscale,
    }


def _training(source: VitSource) -> dict[str, Any]:
    """Return how it was made, where that is recorded; an optimizer only where it was trained."""
    config = source.config
    optim = section(config, "optim") if config.get("restore_from_path") else {}
    told = {
        "target": config.get("target"),
        "nemo_version": config.get("nemo_version"),
        "restored_from": config.get("restore_from_path"),
        "optimizer": {n: optim[n] for n in ("name", "lr", "weight_decay") if n in optim},
        "nemoalign": config.get("nemoalign"),
    }
    return {name: value for name, value in told.items() if value}
