"""NeMo's ``model_config.yaml`` for a ViT of Hugging Face, with every key that NeMo asks for.

What the model does not decide has the values of NeMo's own example for ViT classification.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import nemoalign
from nemoalign.checkpoint.settings.values import whole_number
from nemoalign.checkpoint.vit.source import VIT_CLASS
from nemoalign.errors import ContentError
from nemoalign.weights.vit_rules import VitFamily

NEMO_VERSIONS = {1: "1.23.0", 2: "2.2.0"}
"""A NeMo release that reads each generation."""

_TARGET = f"nemo.collections.vision.models.megatron_vit_classification_models.{VIT_CLASS}"

_ACTIVATIONS: Mapping[str, Mapping[str, Any]] = {
    "gelu": {"activation": "gelu", "openai_gelu": False},
    "gelu_python": {"activation": "gelu", "openai_gelu": False},
    "gelu_new": {"activation": "gelu", "openai_gelu": True},
    "gelu_pytorch_tanh": {"activation": "gelu", "openai_gelu": True},
    "quick_gelu": {"activation": "approx-gelu", "openai_gelu": False},
}

_SETTINGS: Mapping[str, Any] = {
    "precision": 32,
    "micro_batch_size": 1,
    "global_batch_size": 1,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "restore_from_path": None,
    "vision_pretraining_type": "classify",
    "classes_fraction": 1.0,
    "data_per_class_fraction": 1.0,
    "drop_path_rate": 0.0,
    "use_scaled_init_method": True,
    "kv_channels": None,
    "apply_query_key_layer_scaling": True,
    "normalization": "layernorm",
    "do_layer_norm_weight_decay": False,
    "pre_process": True,
    "post_process": True,
    "persist_layer_norm": True,
    "position_embedding_type": "learned_absolute",
    "preprocess_layernorm": False,
    "layerscale": False,
    "bias_activation_fusion": False,
    "class_token_length": 1,
    "finetune": True,
    "native_amp_init_scale": 4294967296,
    "native_amp_growth_interval": 1000,
    "hysteresis": 2,
    "fp32_residual_connection": False,
    "fp16_lm_cross_entropy": False,
    "megatron_amp_O2": False,
    "grad_allreduce_chunk_size_mb": 125,
    "grad_div_ar_fusion": True,
    "masked_softmax_fusion": True,
    "bias_dropout_add_fusion": False,
    "seed": 1234,
    "resume_from_checkpoint": None,
    "use_cpu_initialization": False,
    "onnx_safe": False,
    "apex_transformer_log_level": 30,
    "gradient_as_bucket_view": True,
    "gradient_accumulation_fusion": False,
    "megatron_legacy": False,
    "activations_checkpoint_granularity": None,
    "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None,
    "sequence_parallel": False,
    "data": {
        "data_path": ["train", "val"],
        "num_workers": 2,
        "dataloader_type": "cyclic",
        "validation_drop_last": True,
        "data_sharding": False,
    },
    "nsys_profile": {
        "enabled": False,
        "start_step": 10,
        "end_step": 10,
        "ranks": [0],
        "gen_shape": False,
    },
    "optim": {
        "name": "fused_adam",
        "lr": 5e-4,
        "weight_decay": 0.1,
        "betas": [0.9, 0.999],
        "sched": {
            "name": "CosineAnnealing",
            "warmup_steps": 10000,
            "constant_steps": 0,
            "min_lr": 1e-5,
        },
    },
}


def vit_nemo_config(family: VitFamily, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model_config.yaml of a Hugging Face ViT classifier, as a tree.

    Raises:
        ContentError: when config.json asks for something NeMo cannot represent.
    """
    height, width = image_sides(hf_config)
    activation = hf_config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ContentError(
            f"config.json has hidden_act {activation!r:.60}, which NeMo's ViT does not have; it "
            f"knows {', '.join(_ACTIVATIONS)}."
        )
    config = copy.deepcopy(dict(_SETTINGS))
    for rule in family.config:
        config |= rule.to_nemo(hf_config)
    config |= _ACTIVATIONS[activation]
    config |= {"img_h": height, "img_w": width, "num_classes": num_labels(hf_config)}
    config["patch_dim"] = _patch(hf_config)
    config["kv_channels"] = hf_config.get("head_dim")
    config["target"] = _TARGET
    config["nemo_version"] = NEMO_VERSIONS[1]
    return config | {"nemoalign": vit_provenance(family)}


def with_positions(config: Mapping[str, Any], patches: int) -> dict[str, Any]:
    """Return ``config`` with the two lengths NeMo's example keeps and nobody reads."""
    return {**config, "encoder_seq_length": patches, "max_position_embeddings": patches}


def vit_provenance(family: VitFamily) -> dict[str, Any]:
    """Return our own section of model_config.yaml, which NeMo ignores."""
    return {"version": nemoalign.__version__, "family": family.name}


def image_sides(hf_config: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the images; ContentError when they are no sizes."""
    value = hf_config.get("image_size", 224)
    sides = cast("list[Any]", value) if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ContentError(
            f"config.json has image_size {value!r:.60}, which is no height and width."
        )
    return sides[0], sides[1]


def num_labels(hf_config: Mapping[str, Any]) -> int:
    """Return the number of classes; transformers leaves its default of two out of config.json."""
    labels = hf_config.get("id2label")
    if isinstance(labels, Mapping) and labels:
        return len(cast("Mapping[str, Any]", labels))
    return whole_number(hf_config, "num_labels", "config.json") or 2


def _patch(hf_config: Mapping[str, Any]) -> int:
    value = hf_config.get("patch_size", 16)
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    if type(value) is not int:
        raise ContentError(
            f"config.json has patch_size {value!r:.60}; NeMo's patches are squares of one size."
        )
    return value
