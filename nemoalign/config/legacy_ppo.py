"""NeMo-Aligner's names for settings of ``ppo``: in its files for PPO, for PPO's critic and for REINFORCE.

The tables of ``legacy``, which says what they are; ``aligner_ppo`` is about what names alone do not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROGRAMS = ("ppo", "reinforce")
"""Sections of NeMo-Aligner that are settings of our one command."""


def _both(room: str, *keys: str) -> tuple[str, ...]:
    return tuple(f"{room}.{name}.{key}" for name in PROGRAMS for key in keys)


_OWN: Mapping[str, str] = {
    "trainer.{}.initial_policy_kl_penalty": "model.ppo.initial_policy_kl_penalty",
    "trainer.{}.use_absolute_kl": "model.ppo.kl_estimator",
    "trainer.{}.discount_factor": "model.ppo.discount_factor",
    "trainer.{}.gae_lambda": "model.ppo.gae_lambda",
    "trainer.{}.normalize_advantages": "model.ppo.normalize_advantages",
    "trainer.{}.critic_warmup_steps": "model.ppo.critic_warmup_steps",
    "trainer.{}.num_rollouts_per_prompt": "model.ppo.group",
    "model.{}.sampling_params.temperature": "model.ppo.temperature",
    "model.{}.sampling_params.top_k": "model.ppo.top_k",
    "model.{}.sampling_params.top_p": "model.ppo.top_p",
    "model.{}.sampling_params.end_strings": "model.ppo.stop",
    "model.{}.length_params.max_length": "model.ppo.max_new_tokens",
    "model.{}.length_params.min_length": "model.ppo.min_new_tokens",
}
_LOOP = ("max_epochs", "max_steps", "val_check_interval", "save_interval", "gradient_clip_val")

ALIASES: Mapping[str, str] = {
    **{theirs.format(name): ours for name in PROGRAMS for theirs, ours in _OWN.items()},
    **{f"trainer.reinforce.{key}": f"trainer.ppo.{key}" for key in _LOOP},
    "model.reinforce.num_val_samples": "model.ppo.num_val_samples",
    "model.loss_clip_val": "model.ppo.loss_clip_val",
}

SPELLINGS: Mapping[str, Mapping[str | None, Any]] = {
    "model.ppo.kl_estimator": {"True": "abs", "False": "k1"},
    "exp_manager.checkpoint_callback_params.monitor": {
        "val_rewards": "val_reward",
        "val_global_rewards": "val_reward",
    },
}

QUIET: tuple[str, ...] = (
    # Another program computes rewards and values there.
    "remote_critic_rm.*",
    "remote_rm.*",
    *_both("trainer", "port", "combine_rm_and_critic_server", "inference_micro_batch_size"),
    *_both("trainer", "max_queue_delay_microseconds", "*_sequence_length_to_multiple"),
    *_both("trainer", "model_gbs", "model_mbs", "rollout_batch_seq_length", "trt_llm*"),
    *_both("trainer", "batch_iterator*", "val_num_logged_table_prompts"),
    *_both("model", "rollout_micro_batch_size", "val_rollout_micro_batch_size"),
    *_both("model", "forward_micro_batch_size", "offload_adam_states", "trt_llm*"),
    *_both("model", "combine_rm_and_critic_server", "sampling_params.add_BOS"),
    *_both("model", "sampling_params.all_probs", "sampling_params.compute_logprob"),
    "model.offload_adam_states",
    "model.enable_nge",
    # It counts prompts, so it is worth more than another name.
    "model.reinforce.num_rollout_samples",
    # What a reward model is, its own checkpoint says.
    "model.output_sequence",
    "model.reward_model_type",
    "model.regression.num_attributes",
    "model.regression.merge_attributes",
    "model.regression.load_rm_head_weights",
    "model.regression.loss_*",
)

UNHONOURED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(_both("model", "sampling_params.use_greedy"), ()),
    **dict.fromkeys(_both("model", "sampling_params.repetition_penalty"), (1, 1.0)),
    "model.use_avg_pool": (),
    "model.regression.attribute_weights": (),
}
