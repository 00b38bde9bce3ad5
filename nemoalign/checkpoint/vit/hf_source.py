"""Open a Hugging Face ``ViTForImageClassification`` as if it were a NeMo ViT of the first generation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.archive.dtypes import Array, dtype
from nemoalign.archive.files import Container
from nemoalign.archive.store import TensorInfo, TensorStore
from nemoalign.archive.torch_weights import open_hf_weights
from nemoalign.checkpoint.settings.nemo_config import PRECISIONS
from nemoalign.checkpoint.sources.canonical import check_names
from nemoalign.checkpoint.sources.nemo import HF_FOLDER, read_json_object
from nemoalign.checkpoint.sources.stores import Made, MadeStore
from nemoalign.checkpoint.vit.nemo_config import vit_nemo_config, with_positions
from nemoalign.checkpoint.vit.ranks import check_vit_shapes, grid_warnings
from nemoalign.checkpoint.vit.source import VitSource, read_vit_architecture
from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError
from nemoalign.families.vit import FAMILY
from nemoalign.weights.vit_rules import VitPlan, vit_plans

PREPROCESSOR = "preprocessor_config.json"
KEPT_FILES = ("config.json", PREPROCESSOR)
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
"""What NeMo's own data pipeline subtracts and divides by."""

_RELATIVES = ("vit", "deit", "vit_mae", "vit_msn", "vit_hybrid", "dinov2", "beit")
_MAIN = "backbone.cls_token"


def is_hf_vit(config: Mapping[str, Any]) -> bool:
    """True for the config.json of any vision transformer that somebody could take for this one."""
    named = _architecture(config)
    return config.get("model_type") in _RELATIVES or named.startswith(("ViT", "DeiT"))


def open_vit_hf(container: Container, folder: Path | None = None) -> VitSource:
    """Return the ViT classifier in a Hugging Face directory.

    Raises:
        ContentError: when it is another kind of ViT, or config.json and tensors disagree.
    """
    where = str(container.path)
    hf_config = read_json_object(container.member("config.json"), f"{where}: config.json")
    _refuse_relatives(hf_config, where)
    config = vit_nemo_config(FAMILY, hf_config)
    arch = read_vit_architecture(config, f"{where}: config.json")
    if arch.attention_width != arch.hidden_size:
        raise ContentError(
            f"{where}: config.json has head_dim {arch.head_dim}, which is not hidden_size / "
            "num_attention_heads; NeMo's ViT is not known to take that."
        )
    config = with_positions(config, arch.num_patches)
    store = open_hf_weights(container)
    has_bias = hf_config.get("qkv_bias", True) is not False
    weights = _canonical(store, vit_plans(FAMILY, arch), arch, has_bias, where)
    kind = weights.tensors[_MAIN].dtype
    config["precision"] = PRECISIONS.get(kind, 32)
    config["nemoalign"]["original_dtype"] = kind
    files = {f"{HF_FOLDER}{n}": container.members[n] for n in KEPT_FILES if n in container.members}
    return VitSource(
        path=container.path,
        kind="hf",
        layout=store.layout,
        config=config,
        stored_config=config,
        arch=arch,
        weights=weights,
        files=files,
        hf_config=hf_config,
        warnings=(*grid_warnings(arch), *_pixel_warnings(container)),
        folder=folder,
    )


def _refuse_relatives(config: Mapping[str, Any], where: str) -> None:
    named = _architecture(config) or "ViTForImageClassification"
    if named == FAMILY.hf_architecture and config.get("model_type", "vit") == "vit":
        return
    reasons = {
        "ViTModel": "has no classifier, without which NeMo has no such model",
        "DeiTForImageClassification": "has a distillation token, which NeMo's ViT has not",
        "DeiTForImageClassificationWithTeacher": "has a distillation token, which NeMo's ViT has not",
    }
    reason = reasons.get(named, "is another model than NeMo's ViT")
    raise ContentError(
        f"{where} is a {named}, which {reason}; only {FAMILY.hf_architecture} can be read."
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _canonical(
    store: TensorStore, plans: list[VitPlan], arch: VitArchitecture, has_bias: bool, where: str
) -> TensorStore:
    """Return the canonical tensors, after comparing names and shapes with config.json."""
    expected: dict[str, tuple[int, ...]] = {}
    made: dict[str, Made] = {}
    for plan in plans:
        absent = not has_bias and plan.name.endswith("query_key_value.bias")
        if not absent:
            shapes = plan.op.hf_shapes(plan.shape, arch)
            expected.update(zip(plan.hf_names, shapes, strict=True))
    check_names(store.tensors, expected, where)
    check_vit_shapes(store.tensors, expected, where)
    for plan in plans:
        if plan.hf_names[0] in expected:
            made[plan.name] = _made(store, plan, arch)
        else:
            kind = store.tensors[plan.hf_names[0].replace(".bias", ".weight")].dtype
            zeros = partial(np.zeros, plan.shape, dtype(kind).numpy)
            made[plan.name] = Made(TensorInfo(plan.shape, kind), (), zeros)
    return MadeStore(made)


def _made(store: TensorStore, plan: VitPlan, arch: VitArchitecture) -> Made:
    kinds = sorted({store.tensors[name].dtype for name in plan.hf_names})
    if len(kinds) > 1:
        raise ContentError(
            f"{', '.join(plan.hf_names)} become one tensor but have the element types "
            f"{', '.join(kinds)}. Save the model in one dtype first."
        )

    def make() -> Array:
        return plan.op.to_nemo([store.read(name) for name in plan.hf_names], arch)

    return Made(TensorInfo(plan.shape, kinds[0]), plan.hf_names, make)


def _pixel_warnings(container: Container) -> list[str]:
    """Say where images are prepared otherwise than NeMo prepares them; no weight tells that."""
    if PREPROCESSOR not in container.members:
        return [
            f"The model has no {PREPROCESSOR}, so how its images are normalised is not known. "
            "NeMo's own pipeline uses ImageNet's mean and deviation."
        ]
    region = container.members[PREPROCESSOR]
    found = read_json_object(region, f"{container.path}: {PREPROCESSOR}")
    mean, std = found.get("image_mean"), found.get("image_std")
    if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return []
    return [
        f"The model takes images normalised by mean {mean} and deviation {std}; NeMo's own pipeline "
        f"uses {IMAGENET_MEAN} and {IMAGENET_STD}. Change it there before using this model."
    ]
