"""Defaults and normalisations of peers, for runs that are compared with theirs step by step.

A preset lies between our own defaults and the checkpoint: whatever a person sets wins over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEMO_ALIGNER, TRL = "nemo-aligner", "trl"

_NEMO_SFT: Mapping[str, Any] = {
    "model.optim.lr": 3e-5,
    "model.optim.weight_decay": 0.01,
    "model.optim.betas": (0.9, 0.98),
    "model.optim.sched.name": "CosineAnnealing",
    "model.optim.sched.warmup_steps": 10,
    "model.optim.sched.constant_steps": 1000,
    "model.optim.sched.min_lr": 9e-7,
    "model.global_batch_size": 128,
    "model.micro_batch_size": 1,
    "model.softmax_over_padding": True,
    "model.sft.loss_average": "micro_batches",
    "exp_manager.checkpoint_callback_params.save_top_k": 5,
}
"""``gpt_sft.yaml`` of NeMo-Aligner 0.8, and NeMo's ``loss_func``."""

_TRL_SFT: Mapping[str, Any] = {
    "model.optim.lr": 2e-5,
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
    "trainer.sft.max_epochs": 3,
}
"""``SFTConfig`` of TRL 1.16. Its mean over the tokens of the global batch is ours."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    NEMO_ALIGNER: {"sft": _NEMO_SFT},
    TRL: {"sft": _TRL_SFT},
}
"""Name -> algorithm -> values by dotted key."""

NOTES: Mapping[str, str] = {
    NEMO_ALIGNER: "losses are averaged per micro-batch, over a softmax that counts padding columns, "
    "so they depend on --mbs, data-parallel size and --tp.",
    TRL: "rows keep their order, where TRL draws its own (--shuffle draws ours); of messages TRL trains "
    "every token, which is --mask none.",
}
"""What is worth knowing about each, after its name."""
