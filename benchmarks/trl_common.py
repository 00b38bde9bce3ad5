"""What the scripts that run TRL's trainers share: the model, PEFT's LoRA, the settings of every side, a clock."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from peft import LoraConfig
from plain_transformers import TARGETS
from transformers import AutoModelForCausalLM, TrainerCallback


def load_model(options: argparse.Namespace) -> Any:
    """Return the model in the dtype of the run."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    return AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)


def lora(options: argparse.Namespace) -> LoraConfig | None:
    """Return adapters on all seven linear layers of a block, or None for all weights."""
    if not options.lora:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora,
        lora_alpha=options.lora,
        target_modules=list(TARGETS),
    )


def shared_settings(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return TRL's settings: what every side shares, and nothing that only costs time."""
    return {
        "output_dir": folder,
        "learning_rate": options.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": options.precision == "bf16",
        "use_cpu": options.device == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def in_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that make a step of ``--gbs`` rows, ``--mbs`` at a time."""
    return {
        "max_steps": options.steps,
        "per_device_train_batch_size": options.mbs,
        "gradient_accumulation_steps": options.gbs // options.mbs,
    }


def losses(trainer: Any) -> list[float]:
    """Return what the trainer logged at every step."""
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


class Clock(TrainerCallback):
    """Notes the seconds between the ends of optimizer steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note one step."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
