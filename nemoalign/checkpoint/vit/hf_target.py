"""Write a NeMo ViT as ``ViTForImageClassification``: weights, config.json, preprocessor_config.json."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.archive.dtypes import Array
from nemoalign.checkpoint.settings.hf_config import respelled
from nemoalign.checkpoint.settings.values import section, text
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES
from nemoalign.checkpoint.sources.nemo import HF_FOLDER
from nemoalign.checkpoint.targets.hf_directory import Directory, Piece, write_directory
from nemoalign.checkpoint.targets.writing import WriteOptions, report_of
from nemoalign.checkpoint.vit.forms import plain_form
from nemoalign.checkpoint.vit.hf_source import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PREPROCESSOR,
    open_vit_hf,
)
from nemoalign.checkpoint.vit.nemo_config import num_labels, vit_nemo_config
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError, NemoAlignError
from nemoalign.families.vit import FAMILY
from nemoalign.log import Reporter
from nemoalign.weights.vit_rules import VitPlan, vit_plans

CONFIG = "config.json"
_LAYERNORMS = ("layernorm", "layernorm1p", "low_precision_layernorm")
_MAIN = "backbone.cls_token"


def write_vit_hf(
    source: VitSource, target: Path, options: WriteOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write ``source`` as a Hugging Face directory and return the report, which is also kept in it.

    Raises:
        ContentError: when Hugging Face's ViT cannot represent the model.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    _check_exportable(source)
    form = plain_form(source)
    plain, notes = form.source, form.notes
    without_bias = _had_no_bias(plain)
    config, changes = _config(plain, options, has_bias=not without_bias)
    for note in (*notes, *changes):
        reporter.warn(note)
    plans = [p for p in vit_plans(FAMILY, plain.arch) if not (without_bias and _is_bias(p.name))]
    directory = Directory(
        tensors=[plan.name for plan in plans],
        pieces=[_piece(plain, plan) for plan in plans],
        files={CONFIG: config, **_other_files(plain)},
        report=lambda: report_of(source, target, options, began) | {"notes": [*notes, *changes]},
        reopen=open_vit_hf,
    )
    return write_directory(directory, target, options, reporter)


def _check_exportable(source: VitSource) -> None:
    """Refuse a model that ``ViTForImageClassification`` cannot be; every reason is named."""
    found = reasons_against(source.arch)
    if found:
        raise ContentError(
            f"{source.path} cannot be written as Hugging Face's {FAMILY.hf_architecture}: "
            f"{'; '.join(found)}. It can be inspected, resharded and converted to .nemo."
        )


def reasons_against(arch: VitArchitecture) -> list[str]:
    """Return what keeps a model from being Hugging Face's ViT, nothing when it can be one."""
    reasons = {
        f"it has {arch.class_token_length} class tokens (class_token_length), not one": (
            arch.class_token_length != 1
        ),
        "it has the pretraining head of two layers (finetune: false), not a linear one": (
            not arch.finetune
        ),
        f"its norms are {arch.normalization}": arch.normalization not in _LAYERNORMS,
        "it normalises what enters the first layer (preprocess_layernorm)": (
            arch.preprocess_layernorm
        ),
        f"its activation is {arch.activation}": hidden_act(arch) is None,
        f"its heads of {arch.head_dim} (kv_channels) are not hidden_size / num_attention_heads": (
            arch.attention_width != arch.hidden_size
        ),
    }
    return [reason for reason, holds in reasons.items() if holds]


def hidden_act(arch: VitArchitecture) -> str | None:
    """Return Hugging Face's name of the activation NeMo computes, None where there is none."""
    if arch.has_tanh_gelu:
        return "gelu_pytorch_tanh"
    if arch.bias_activation_fusion:
        return None  # NeMo then applies neither the activation nor the bias
    return {"gelu": "gelu", "approx-gelu": "quick_gelu"}.get(arch.activation)


def _piece(source: VitSource, plan: VitPlan) -> Piece:
    shapes = plan.op.hf_shapes(plan.shape, source.arch)
    named = dict(zip(plan.hf_names, shapes, strict=True))
    kind = source.weights.tensors[plan.name].dtype

    def make() -> tuple[Array, ...]:
        return plan.op.to_hf(source.weights.read(plan.name), source.arch)

    return Piece(plan.name, kind, named, make)


def _is_bias(name: str) -> bool:
    return name.endswith("query_key_value.bias")


def _had_no_bias(source: VitSource) -> bool:
    """True when the original had no query, key and value biases and they are zeros still."""
    if (source.hf_config or {}).get("qkv_bias", True) is not False:
        return False
    names = [name for name in source.weights.tensors if _is_bias(name)]
    return not any(np.any(source.weights.read(name)) for name in names)


def _config(
    source: VitSource, options: WriteOptions, *, has_bias: bool
) -> tuple[bytes, tuple[str, ...]]:
    """Return config.json, the original's where there is one and nothing changed, and what changed."""
    main = source.weights.tensors[_MAIN].dtype
    written = options.written_dtype(main)
    fields = _fields(source.arch) | {"qkv_bias": has_bias}
    original = source.hf_config
    if original is None:
        new = {
            "architectures": [FAMILY.hf_architecture],
            "model_type": FAMILY.hf_model_type,
            **fields,
            **_labels(source.arch.num_classes),
            "torch_dtype": written,
        }
        return _json(new), ()
    before = _fields_before(source, original)
    changed = {name: value for name, value in fields.items() if before.get(name) != value}
    if num_labels(original) != source.arch.num_classes:
        changed |= _labels(source.arch.num_classes)
    names = ", ".join(changed)
    if written != (text(section(source.config, "nemoalign"), "original_dtype") or main):
        changed["torch_dtype"] = written
    note = f"config.json differs from the original model's in {names}: the archive's decided."
    return _json(respelled(original, changed)), (note,) if names else ()


def _fields(arch: VitArchitecture) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for rule in FAMILY.config:
        fields |= rule.to_hf(arch)
    square = arch.img_h == arch.img_w
    image = arch.img_h if square else [arch.img_h, arch.img_w]
    return fields | {"image_size": image, "hidden_act": hidden_act(arch)}


def _fields_before(source: VitSource, original: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same fields as they follow from the original config.json."""
    try:
        arch = VitArchitecture.from_nemo(vit_nemo_config(FAMILY, original))
    except NemoAlignError:
        return {}
    return _fields(arch) | {"qkv_bias": original.get("qkv_bias", True)}


def _labels(count: int) -> dict[str, Any]:
    """Return class names, which NeMo does not record, as transformers makes them up."""
    names = [f"LABEL_{number}" for number in range(count)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _other_files(source: VitSource) -> dict[str, bytes]:
    """Return how images are prepared: as the original model says, else as NeMo does it."""
    if source.hf_config is not None:
        kept = source.files.get(f"{HF_FOLDER}{PREPROCESSOR}")
        return {} if kept is None else {PREPROCESSOR: kept.read(MAX_FILE_BYTES)}
    prepared = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": source.arch.img_h, "width": source.arch.img_w},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    return {PREPROCESSOR: _json(prepared)}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
