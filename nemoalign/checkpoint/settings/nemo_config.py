"""Write NeMo's ``model_config.yaml`` for a Hugging Face model, as NeMo's own converter would.

What the family's table does not decide are settings of training and of kernels, with the values of
NeMo's ``megatron_llama_config.yaml``; NeMo asks for them when it restores a model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import nemoalign
from nemoalign.checkpoint.settings.values import whole_number
from nemoalign.checkpoint.settings.vocabulary import SentencePieces
from nemoalign.errors import ContentError
from nemoalign.weights.config_rules import nemo_fields
from nemoalign.weights.rules import Family

PRECISIONS: Mapping[str, Any] = {"float32": 32, "bfloat16": "bf16", "float16": 16}
"""NeMo's ``precision`` for each element type weights may be kept in."""

_TARGET = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"
_NEMO_VERSION = "2.2.0"
"""The NeMo release whose reader this configuration is written for."""

_SETTINGS: Mapping[str, Any] = {
    "mcore_gpt": True,
    "micro_batch_size": 1,
    "global_batch_size": 8,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "ffn_dropout": 0.0,
    "use_scaled_init_method": True,
    "apply_query_key_layer_scaling": True,
    "do_layer_norm_weight_decay": False,
    "pre_process": True,
    "post_process": True,
    "persist_layer_norm": True,
    "headscale": False,
    "normalize_attention_scores": True,
    "attention_type": "multihead",
    "overlap_p2p_comm": False,
    "batch_p2p_comm": True,
    "native_amp_init_scale": 4294967296,
    "native_amp_growth_interval": 1000,
    "hysteresis": 2,
    "fp32_residual_connection": False,
    "fp16_lm_cross_entropy": False,
    "megatron_amp_O2": False,
    "grad_allreduce_chunk_size_mb": 125,
    "grad_div_ar_fusion": True,
    "gradient_accumulation_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_add_fusion": False,
    "masked_softmax_fusion": True,
    "get_attention_mask_from_fusion": True,
    "apply_rope_fusion": False,
    "seed": 1234,
    "resume_from_checkpoint": None,
    "use_cpu_initialization": False,
    "onnx_safe": False,
    "apex_transformer_log_level": 30,
    "gradient_as_bucket_view": True,
    "sync_batch_comm": False,
    "activations_checkpoint_granularity": None,
    "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None,
    "num_micro_batches_with_partial_activation_checkpoints": None,
    "activations_checkpoint_layers_per_pipeline": None,
    "sequence_parallel": False,
    "transformer_engine": True,
    "fp8": False,
    "fp8_e4m3": False,
    "fp8_hybrid": False,
    "fp8_margin": 0,
    "fp8_interval": 1,
    "fp8_amax_history_len": 1,
    "fp8_amax_compute_algo": "most_recent",
    "reduce_amax": True,
    "use_emha": False,
    "dist_ckpt_format": "torch_dist",
    "data": {
        "index_mapping_dir": None,
        "data_impl": "mmap",
        "splits_string": "900,50,50",
        "skip_warmup": True,
        "num_workers": 2,
        "dataloader_type": "single",
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "validation_drop_last": True,
        "no_seqlen_plus_one_input_tokens": False,
        "pad_samples_to_global_batch_size": False,
        "shuffle_documents": True,
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
        "lr": 2e-4,
        "weight_decay": 0.01,
        "betas": [0.9, 0.98],
        "sched": {
            "name": "CosineAnnealing",
            "warmup_steps": 500,
            "constant_steps": 50000,
            "min_lr": 2e-5,
        },
    },
}


def nemo_config(
    family: Family, hf_config: Mapping[str, Any], tokenizer: Mapping[str, Any], tokens: int | None
) -> dict[str, Any]:
    """Return the model_config.yaml of a Hugging Face model, as a tree.

    Args:
        family: the model's family.
        hf_config: its config.json.
        tokenizer: the ``tokenizer`` section.
        tokens: the tokenizer's own size, where it is known; NeMo derives its padding from it.

    Raises:
        ContentError: when config.json asks for something a ``.nemo`` cannot represent.
    """
    vocab_size = whole_number(hf_config, "vocab_size", "config.json")
    if vocab_size is None:
        raise ContentError("config.json has no vocab_size.")
    fixed = {name: allowed[0] for name, allowed in family.fixed.items() if allowed[0] is not None}
    fields = fixed | nemo_fields(family.config, hf_config)
    config = with_settings(fields, tokenizer)
    config["make_vocab_size_divisible_by"] = multiple = _multiple(vocab_size)
    if tokens is not None and -(-tokens // multiple) * multiple != vocab_size:
        # NeMo pads the tokenizer's size and would arrive at another number of rows.
        config["override_vocab_size"] = vocab_size
    return config | {"nemoalign": provenance(family, vocab_size)}


def with_settings(fields: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole model_config.yaml for the fields of an architecture and its tokenizer."""
    config = dict(fields) | copy.deepcopy(dict(_SETTINGS)) | {"tokenizer": dict(tokenizer)}
    config["data"]["seq_length"] = config["encoder_seq_length"]
    return config | {"target": _TARGET, "nemo_version": _NEMO_VERSION}


def provenance(family: Family, vocab_size: int | None) -> dict[str, Any]:
    """Return our own section of model_config.yaml, which NeMo ignores; an unknown size is left out."""
    section: dict[str, Any] = {"version": nemoalign.__version__, "family": family.name}
    return section if vocab_size is None else section | {"vocab_size": vocab_size}


def tokenizer_section(
    model: SentencePieces | None, artifact: str | None, hf_config: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return the ``tokenizer`` section for a SentencePiece artifact or a Hugging Face tokenizer.

    NeMo's reader of SentencePiece does not know tokens that were added beside the model file, so
    the file is named only when it covers the vocabulary.
    """
    section: dict[str, Any] = {
        "library": "huggingface",
        "type": _repository(hf_config) or name,
        "model": None,
        "vocab_file": None,
        "merge_file": None,
        "delimiter": None,
        "sentencepiece_legacy": False,
        "use_fast": True,
    }
    if model is None or artifact is None or len(model.pieces) < int(hf_config["vocab_size"]):
        return section
    sentencepiece = {"library": "sentencepiece", "type": None, "model": f"nemo:{artifact}"}
    return section | sentencepiece | {"use_fast": False}


def _repository(hf_config: Mapping[str, Any]) -> str | None:
    """Return the hub's name of the model where its config.json carries it."""
    name = str(hf_config.get("_name_or_path") or "")
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _multiple(vocab_size: int) -> int:
    """Return the largest of 128, 64, ... 1 that divides the vocabulary, as NeMo's converter does."""
    multiple = 128
    while vocab_size % multiple:
        multiple //= 2
    return multiple
