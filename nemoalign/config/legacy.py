"""NeMo and NeMo-Aligner spellings: which of their keys mean a setting here, and which mean nothing.

A key of theirs is one of four: a setting under another name (``ALIASES``), a value in another
spelling (``SPELLINGS``), a matter of NeMo's own machinery whose absence changes no result (``QUIET``),
or something we cannot do, named in one warning when it is switched on (``UNHONOURED``).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from fnmatch import fnmatchcase
from typing import Any

from nemoalign.config import legacy_ppo
from nemoalign.config.values import plain

DATA_PREFIX = "model.data.data_prefix"
ALIASES: Mapping[str, str] = {
    "model.restore_from_path": "pretrained_checkpoint.restore_from_path",
    "model.data.train_ds.global_batch_size": "model.global_batch_size",
    "model.data.train_ds.micro_batch_size": "model.micro_batch_size",
    "model.data.data_prefix": "model.data.train_ds.file_path",
    "model.data.data_prefix.train": "model.data.train_ds.file_path",
    "model.data.data_prefix.validation": "model.data.validation_ds.file_path",
    "model.data.data_prefix.test": "model.data.test_ds.file_path",
    "model.data.seq_length": "model.data.train_ds.max_seq_length",
    "model.data.default_chosen_reward": "model.dpo.default_chosen_reward",
    "model.data.default_rejected_reward": "model.dpo.default_rejected_reward",
    "model.data.append_eod": "model.data.train_ds.add_eos",
    "exp_manager.max_time_per_run": "trainer.max_time",
    "trainer.rm.train_random_sampler": "model.data.train_ds.shuffle",
    "model.reward_model_type": "model.rm.reward_model_type",
    "model.use_avg_pool": "model.rm.use_avg_pool",
    "model.regression.num_attributes": "model.rm.num_attributes",
    "model.regression.merge_attributes": "model.rm.merge_attributes",
    "model.regression.attribute_weights": "model.rm.attribute_weights",
    "model.regression.loss_mask_val": "model.rm.loss_mask_val",
    "model.regression.loss_func": "model.rm.loss_func",
    "model.regression.load_rm_head_weights": "model.rm.load_rm_head_weights",
    **legacy_ppo.ALIASES,
}

_BF16 = dict.fromkeys(("bf16", "bf16-mixed", "bf16-true"), "bf16")
_FP32 = dict.fromkeys(("32", "32-true", "fp32"), "fp32")

SPELLINGS: Mapping[str, Mapping[str | None, Any]] = {
    "trainer.precision": {**_BF16, **_FP32},
    "trainer.devices": {"-1": None, "auto": None},
    "trainer.*.gradient_clip_val": {None: 0.0},
    "model.peft.peft_scheme": {None: "none"},
    "model.virtual_pipeline_model_parallel_size": {"1": None},
    **legacy_ppo.SPELLINGS,
}
"""Value as text (or None) -> our value, by pattern of keys."""

QUIET: tuple[str, ...] = (
    "name",
    "precision",
    "restore_from_path",
    "trainer.accelerator",
    "trainer.logger",
    "trainer.enable_checkpointing",
    "trainer.use_distributed_sampler",
    "trainer.benchmark",
    "trainer.log_every_n_steps",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.limit_test_batches",
    "trainer.num_sanity_val_steps",
    "trainer.strategy",
    "exp_manager.name",
    "exp_manager.version",
    "exp_manager.use_datetime_version",
    "exp_manager.resume_ignore_no_checkpoint",
    "exp_manager.resume_past_end",
    "exp_manager.create_checkpoint_callback",
    "exp_manager.*_logger_kwargs*",
    "exp_manager.summary_writer_kwargs*",
    "exp_manager.log_step_timing",
    "exp_manager.step_timing_kwargs*",
    "exp_manager.checkpoint_callback_params.model_parallel_size",
    "exp_manager.checkpoint_callback_params.always_save_nemo",
    "model.target",
    "model.nemo_version",
    "model.mcore_gpt",
    "model.megatron_amp_O2",
    "model.megatron_legacy",
    "model.transformer_engine",
    "model.use_cpu_initialization",
    "model.precision",
    "model.name",
    "model.answer_only_loss",
    "model.forward_micro_batch_size",
    "model.save_nemo_on_validation_end",
    "model.use_flash_attention",
    "model.pre_process",
    "model.post_process",
    "model.persist_layer_norm",
    "model.gradient_as_bucket_view",
    "model.gradient_accumulation_fusion",
    "model.grad_div_ar_fusion",
    "model.grad_allreduce_chunk_size_mb",
    "model.bias_dropout_add_fusion",
    "model.masked_softmax_fusion",
    "model.apply_rope_fusion",
    "model.get_attention_mask_from_fusion",
    "model.use_scaled_init_method",
    "model.apply_query_key_layer_scaling",
    "model.normalize_attention_scores",
    "model.attention_type",
    "model.native_amp_*",
    "model.hysteresis",
    "model.onnx_safe",
    "model.apex_transformer_log_level",
    "model.sync_batch_comm",
    "model.batch_p2p_comm",
    "model.overlap_p2p_comm",
    "model.ub_*",
    "model.cpu_offloading*",
    "model.dist_ckpt_*",
    "model.nccl_*",
    "model.fsdp_*",
    "model.megatron_timer*",
    "model.enable_megatron_timers",
    "model.nsys_profile*",
    "model.gc_interval",
    "model.reduce_amax",
    "model.use_emha",
    "model.sharp",
    "model.validation_param_sync_overlap",
    "model.steerable_attributes*",
    "model.steerlm*",
    "model.inference*",
    "model.optim.bucket_cap_mb",
    "model.optim.overlap_param_*",
    "model.optim.contiguous_*",
    "model.optim.grad_sync_dtype",
    "model.optim.dtype",
    "model.optim.*_dtype",
    "model.data.chat",
    "model.data.num_workers",
    "model.data.dataloader_type",
    "model.data.data_impl",
    "model.data.skip_warmup",
    "model.data.mmap_bin_files",
    "model.data.num_dataset_builder_threads",
    "model.data.shuffle_documents",
    "model.data.validation_drop_last",
    "model.data.index_mapping_dir",
    "model.data.pad_samples_to_*",
    "model.data.no_seqlen_plus_one_input_tokens",
    "model.data.pad_length_to_multiple_of",
    "model.data.*_ds.memmap_workers",
    "model.data.*_ds.index_mapping_dir",
    "model.data.*_ds.hf_dataset",
    "model.data.*_ds.output_original_text",
    "model.data.*_ds.num_workers",
    "model.data.*_ds.pin_memory",
    "model.data.*_ds.drop_last",
    "model.data.*_ds.pad_to_max_length",
    "model.data.validation_ds.*_batch_size",
    "model.data.test_ds.*_batch_size",
    "model.data.train_ds.packed_sequence_*",
    "model.peft.lora_tuning.position_embedding_strategy",
)

UNHONOURED: Mapping[str, tuple[Any, ...]] = {
    "defaults": (),
    "hydra*": (),
    "trainer.max_epochs": (),
    "trainer.max_steps": (-1,),
    "trainer.val_check_interval": (),
    "trainer.gradient_clip_val": (),
    "trainer.limit_train_batches": (1.0,),
    "trainer.limit_val_batches": (1.0,),
    "trainer.accumulate_grad_batches": (1,),
    "trainer.*.limit_train_batches": (1.0,),
    "trainer.*.limit_val_batches": (1.0,),
    "trainer.*.inference_metrics*": (),
    "trainer.rm.val_random_sampler": (),
    "exp_manager.exp_dir": (),
    "exp_manager.create_mlflow_logger": (),
    "exp_manager.create_early_stopping_callback": (),
    "exp_manager.early_stopping_callback_params*": (),
    "exp_manager.ema*": (),
    "exp_manager.resume_from_checkpoint": (),
    "exp_manager.checkpoint_callback_params.filename": (),
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": (True,),
    "exp_manager.checkpoint_callback_params.save_best_model": (),
    "exp_manager.checkpoint_callback_params.every_n_*": (),
    "model.resume_from_checkpoint": (),
    "model.restore_from_ckpt*": (),
    "model.pipeline_model_parallel_split_rank": (0,),
    "model.activations_checkpoint_layers_per_pipeline": (),
    "model.activations_checkpoint_method": ("uniform",),
    "model.activations_checkpoint_num_layers": (1,),
    "model.num_micro_batches_with_partial_activation_checkpoints": (),
    "model.ffn_dropout": (),
    "model.fp32_residual_connection": (),
    "model.fp16_lm_cross_entropy": (),
    "model.do_layer_norm_weight_decay": (),
    "model.headscale": (),
    "model.fp8*": (),
    "model.fsdp": (),
    "model.rampup_batch_size": (),
    "model.reset_lr*": (),
    "model.output_sequence": (),
    "model.force_head_dtype": (32, "32", "fp32", "float32", "torch.float32"),
    "model.reward_standardization*": (),
    "model.mcore_customization_config*": (),
    "model.peft.restore_from_ckpt*": (),
    "model.optim.sched.last_epoch": (-1,),
    "model.data.apply_ftfy": (),
    "model.*.log_prob_forward_micro_batch_size": (),
    "model.kto.sft_average_log_probs": (),
    "model.kto.sft_loss_weight": (),
    "model.kto.preference_loss_weight": (1, 1.0),
    "pretrained_checkpoint.checkpoint_dir": (),
    "pretrained_checkpoint.checkpoint_name": (),
    "model.data.sample": (),
    "model.data.eod_mask_loss": (),
    "model.data.reset_position_ids": (),
    "model.data.reset_attention_mask": (),
    "model.data.*_ds.min_seq_length": (1,),
    "model.data.*_ds.file_names": (),
    "model.data.*_ds.concat_sampling_probabilities": (),
    "model.data.*_ds.packed_sequence": (),
    "model.data.*_ds.tokens_to_generate": (),
    "model.data.validation_ds.*": (),
    "model.data.test_ds*": (),
}
"""Pattern of keys -> values that switch nothing on; null, false, 0 and empty ones never do."""

FP8_DETAILS = ("model.fp8_amax_*", "model.fp8_margin", "model.fp8_interval", "model.fp8_hybrid")
TWINS: Mapping[str, str] = {
    "model.data.validation_ds.": "model.data.train_ds.",
    "model.data.test_ds.": "model.data.train_ds.",
    "trainer.": "trainer.{algorithm}.",
    "model.dpo.log_prob_forward_micro_batch_size": "model.micro_batch_size",
    "model.kto.log_prob_forward_micro_batch_size": "model.micro_batch_size",
}
"""A NeMo key under the first prefix asks for nothing new when the setting under the second says so."""


def spelled(key: str, value: Any) -> Any:
    """Return ``value`` in our spelling when NeMo writes it otherwise."""
    for pattern, spellings in SPELLINGS.items():
        if fnmatchcase(key, pattern):
            return spellings.get(None if value is None else str(value), value)
    return value


def aliases_of(settings: Container[str]) -> dict[str, str]:
    """Return NeMo's names of ``settings``, those a run of one algorithm has."""
    return {theirs: ours for theirs, ours in ALIASES.items() if ours in settings}


def is_nemo_key(key: str, algorithm: str) -> bool:
    """True when NeMo or NeMo-Aligner knows ``key`` and no setting of ours corresponds to it."""
    return is_quiet(key, algorithm) or _matches(key, tuple(_unhonoured(algorithm)))


def is_quiet(key: str, algorithm: str) -> bool:
    """True for a key of NeMo's whose absence changes no result, whatever its value."""
    own = legacy_ppo.QUIET if algorithm == "ppo" else ()
    return _matches(key, (*QUIET, *FP8_DETAILS, *own))


def is_lost(key: str, value: Any, settings: Mapping[str, Any], algorithm: str) -> bool:
    """True when NeMo would do something for ``key: value`` that we do not do.

    ``settings`` are the merged values: a key that repeats one of them asks for what happens anyway.
    """
    if not value:
        return False
    for prefix, other in TWINS.items():
        if key.startswith(prefix):
            twin = other.format(algorithm=algorithm) + key.removeprefix(prefix)
            if twin in settings and plain(settings[twin]) == value:
                return False
    return not any(
        fnmatchcase(key, pattern) and value in neutral
        for pattern, neutral in _unhonoured(algorithm).items()
    )


def _unhonoured(algorithm: str) -> Mapping[str, tuple[Any, ...]]:
    return {**UNHONOURED, **legacy_ppo.UNHONOURED} if algorithm == "ppo" else UNHONOURED


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
