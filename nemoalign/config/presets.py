"""Defaults and normalisations of peers, for runs that are compared with theirs step by step.

A preset lies between our own defaults and the checkpoint: whatever a person sets wins over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemoalign.config.values import Every

NEMO_ALIGNER, TRL = "nemo-aligner", "trl"

_NEMO_OPTIM: Mapping[str, Any] = {
    "model.optim.betas": (0.9, 0.98),
    "model.optim.sched.name": "CosineAnnealing",
    "model.optim.sched.warmup_steps": 10,
    "model.optim.sched.constant_steps": 1000,
    "model.optim.sched.min_lr": 9e-7,
    "model.micro_batch_size": 1,
    "model.softmax_over_padding": True,
}
_NEMO_SFT: Mapping[str, Any] = {
    **_NEMO_OPTIM,
    "model.optim.lr": 3e-5,
    "model.optim.weight_decay": 0.01,
    "model.global_batch_size": 128,
    "model.sft.loss_average": "micro_batches",
    "exp_manager.checkpoint_callback_params.save_top_k": 5,
}
"""``gpt_sft.yaml`` of NeMo-Aligner 0.8, and NeMo's ``loss_func``."""

_NEMO_JUDGED: Mapping[str, Any] = {
    **_NEMO_OPTIM,
    "model.optim.lr": 9e-6,
    "model.optim.weight_decay": 0.1,
    "model.global_batch_size": 64,
    "model.data.train_ds.add_eos": False,
    "model.data.train_ds.overlong": "drop",
    "exp_manager.checkpoint_callback_params.save_top_k": 3,
}
_NEMO_DPO: Mapping[str, Any] = {
    **_NEMO_JUDGED,
    "model.dpo.ref_policy_kl_penalty": 0.2,
    "model.dpo.preference_average_log_probs": False,
    "model.dpo.sft_average_log_probs": False,
    "trainer.dpo.val_check_interval": Every(0.1, epochs=True),
    "trainer.dpo.save_interval": Every(100),
}
"""``gpt_dpo.yaml``: ipo compares summed log-probs, and nothing ends an answer."""
_NEMO_KTO: Mapping[str, Any] = {
    **_NEMO_JUDGED,
    "model.kto.ref_policy_kl_penalty": 0.2,
    "model.kto.kl_estimate": "micro_batch",
    # A pack is no micro-batch of so many rows, and the KL is one's mean.
    "model.data.train_ds.packed_sequence": False,
    "trainer.kto.val_check_interval": Every(0.1, epochs=True),
    "trainer.kto.save_interval": Every(100),
}
"""``gpt_kto.yaml``, and the KL of ``megatron_gpt_kto_model.py``."""
_NEMO_RM: Mapping[str, Any] = {**_NEMO_JUDGED, "model.micro_batch_size": 2}
"""``training_rm.yaml``."""
_NEMO_PPO: Mapping[str, Any] = {
    **_NEMO_OPTIM,
    "model.optim.lr": 9e-7,
    "model.optim.weight_decay": 0.1,
    "model.optim.sched.min_lr": 9e-8,
    "model.global_batch_size": 64,
    "model.data.train_ds.shuffle": True,
    "model.ppo.advantage": "gae",
    "model.ppo.num_rollout_samples": 512,
    "model.ppo.stop": ("<|endoftext|>", "<extra_id_1>"),
    "model.ppo.initial_policy_kl_penalty": 0.01,
    "model.ppo.kl_in": "reward",
    "model.ppo.kl_estimator": "abs",
    "model.ppo.gae_lambda": 0.95,
    "model.ppo.normalize_advantages": True,
    "model.ppo.unfinished": "mask",
    "model.ppo.critic_lr": 9e-6,
    "model.ppo.loss_clip_val": 0.2,
    "exp_manager.checkpoint_callback_params.save_top_k": 1,
}
"""``gpt_ppo_actor.yaml`` and ``gpt_ppo_critic.yaml``."""

_TRL: Mapping[str, Any] = {
    "model.optim.weight_decay": 0.0,
    "model.optim.betas": (0.9, 0.999),
    "model.optim.sched.name": "linear",
    "model.optim.sched.warmup_steps": 0,
    "model.optim.sched.min_lr": 0.0,
    "model.global_batch_size": 8,
    "model.micro_batch_size": 8,
    "model.seed": 42,
    "model.data.train_ds.max_seq_length": 1024,
    "model.data.train_ds.packed_sequence": False,
}
_TRL_SFT: Mapping[str, Any] = {**_TRL, "model.optim.lr": 2e-5, "trainer.sft.max_epochs": 3}
"""``SFTConfig`` of TRL 1.16. Its mean over the tokens of the global batch is ours."""
_TRL_JUDGED: Mapping[str, Any] = {
    **_TRL,
    # TRL counts the last id too, which is only predicted.
    "model.data.train_ds.max_seq_length": 1023,
}
_TRL_DPO: Mapping[str, Any] = {
    **_TRL_JUDGED,
    "model.optim.lr": 1e-6,
    "model.dpo.ref_policy_kl_penalty": 0.1,
    "trainer.dpo.max_epochs": 3,
}
"""``DPOConfig``."""
_TRL_KTO: Mapping[str, Any] = {
    **_TRL_JUDGED,
    "model.optim.lr": 1e-6,
    "model.kto.ref_policy_kl_penalty": 0.1,
    "model.kto.mismatched_answer": "previous",
    "trainer.kto.max_epochs": 3,
}
"""``KTOConfig``; a mismatched row takes the answer before its own."""
_TRL_RM: Mapping[str, Any] = {**_TRL, "model.optim.lr": 1e-4, "trainer.rm.max_epochs": 3}
"""``RewardConfig``."""
_TRL_PPO: Mapping[str, Any] = {
    **{key: value for key, value in _TRL.items() if key != "model.data.train_ds.max_seq_length"},
    "model.optim.lr": 1e-6,
    "model.data.train_ds.shuffle": True,
    "model.ppo.advantage": "grpo",
    "model.ppo.group": 8,
    "model.ppo.num_rollout_samples": 8,
    "model.ppo.scale_rewards": "group",
    "model.ppo.max_new_tokens": 512,
    "model.ppo.min_new_tokens": 0,
    "model.ppo.initial_policy_kl_penalty": 0.0,
    "model.ppo.ratio_eps": 0.2,
    "model.ppo.loss_average": "tokens",
    "model.ppo.unfinished": "learn",
    "trainer.ppo.max_epochs": 3,
}
"""``GRPOConfig``: one prompt a step, the loss ``dapo``, no reference policy."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    NEMO_ALIGNER: {
        "sft": _NEMO_SFT,
        "dpo": _NEMO_DPO,
        "kto": _NEMO_KTO,
        "rm": _NEMO_RM,
        "ppo": _NEMO_PPO,
    },
    TRL: {"sft": _TRL_SFT, "dpo": _TRL_DPO, "kto": _TRL_KTO, "rm": _TRL_RM, "ppo": _TRL_PPO},
}
"""Name -> algorithm -> values by dotted key."""

_NEMO_PAIRS = (
    "the softmax counts padding columns, so losses depend on --tp; no end token follows an answer; "
    "rows that are too long are dropped (NeMo-Aligner keeps them as constants in its mean)."
)
_TRL_ORDER = "rows keep their order, where TRL draws its own (--shuffle draws ours)."
NOTES: Mapping[str, Mapping[str, str]] = {
    NEMO_ALIGNER: {
        "sft": "losses are averaged per micro-batch, over a softmax that counts padding columns, "
        "so they depend on --mbs, data-parallel size and --tp.",
        "dpo": _NEMO_PAIRS,
        "kto": f"the KL is a micro-batch's, so it depends on --mbs and data-parallel size; {_NEMO_PAIRS} "
        "A mismatched row passes over answers to its own prompt, which NeMo-Aligner does not.",
        "rm": "rows that are too long are dropped; the head stays fp32, where NeMo-Aligner's is bf16.",
        "ppo": "losses are means over the tokens of a global batch, NeMo-Aligner's over those of micro-batches "
        "first; warm-up and schedule count steps, a rollout each, NeMo-Aligner's count updates, 8 a step; the "
        "softmax counts padding columns, so losses depend on --tp; draws and minibatches are ours.",
    },
    TRL: {
        "sft": f"{_TRL_ORDER.removesuffix('.')}; of messages TRL trains every token, which is --mask none.",
        "dpo": _TRL_ORDER,
        "kto": f"{_TRL_ORDER} A mismatched row passes over answers to its own prompt, which TRL does not.",
        "rm": _TRL_ORDER,
        "ppo": "GRPO as GRPOTrainer does it, but over the rewards' deviation + 1e-6, where TRL has 1e-4; prompts "
        "and draws come in our order. RLOOTrainer's defaults are --advantage rloo --group 2 --kl 0.05.",
    },
}
"""What is worth knowing about each, after its name."""
