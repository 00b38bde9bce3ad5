"""Machines, length, saving and output of a run: ``trainer`` and ``exp_manager``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemoalign.config.fields import Section, section, setting
from nemoalign.config.values import Duration, Every


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Section):
    """When a run ends, validates and saves."""

    max_epochs: int = setting(
        1, "Passes over the training rows.", flag="--epochs", at_least=1, panel="Length of the run"
    )
    max_steps: int = setting(
        -1,
        "Optimizer steps, if that comes first; 0 only measures --val and --test.",
        flag="--max-steps",
        at_least=-1,
        shown="no limit",
        panel="Length of the run",
    )
    val_check_interval: Every = setting(
        Every(100),
        "Validate every so many steps (100), share of an epoch (0.1) or epochs (1epoch); 0 never.",
        flag="--val-every",
        metavar="EVERY",
        panel="Length of the run",
    )
    save_interval: Every = setting(
        Every(100),
        "Save a checkpoint as often.",
        flag="--save-every",
        metavar="EVERY",
        shown="as --val-every",
        panel="Length of the run",
    )
    gradient_clip_val: float = setting(
        1.0,
        "Largest norm of the gradient; 0 is off.",
        flag="--grad-clip",
        at_least=0,
        panel="Optimizer",
    )

    max_skipped_steps: int = setting(
        3,
        "Stop (exit 9) after so many steps in a row whose loss or gradient is not finite.",
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Section):
    """Machines, precision and the loop."""

    num_nodes: int | None = setting(
        None,
        "Machines; srun or torchrun starts the ranks on them.",
        flag="--num-nodes",
        at_least=1,
        shown="as started",
        panel="Parallelism",
    )
    devices: int | None = setting(
        None,
        "Ranks on this machine.",
        flag="--devices",
        at_least=1,
        shown="every GPU; on CPU tp x pp",
        panel="Parallelism",
    )
    precision: Literal["bf16", "fp32"] = setting(
        "bf16",
        "Arithmetic of the model; master weights and the optimizer are fp32 in both.",
        flag="--precision",
        panel="Batches and length",
    )
    loop: LoopConfig = section(LoopConfig, key="{algorithm}")
    max_time: Duration | None = setting(
        None,
        "Save and stop with exit code 75 after this long.",
        flag="--max-time",
        metavar="D-HH:MM:SS",
        shown="no limit",
        panel="Length of the run",
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointCallback(Section):
    """Which checkpoints stay."""

    monitor: str = setting(
        "val_loss", "Metric that ranks checkpoints.", flag="--monitor", panel="Output"
    )
    save_top_k: int = setting(
        3,
        "Best checkpoints to keep, beside the last; -1 keeps all.",
        flag="--keep-top",
        at_least=-1,
        panel="Output",
    )
    mode: Literal["min", "max"] = setting(
        "min", "Whether a low or a high value of --monitor is good."
    )
    async_save: bool | None = setting(
        None,
        "Write checkpoints in a process of their own while training goes on.",
        shown="on GPUs; on CPUs it takes cores and memory from training",
    )


@dataclass(frozen=True, kw_only=True)
class EarlyStopping(Section):
    """When validation says that a run has learned what it can."""

    patience: int = setting(
        0,
        "Stop after so many validations without a better --monitor.",
        flag="--early-stop",
        metavar="N",
        at_least=0,
        shown="off",
        panel="Length of the run",
    )
    min_delta: float = setting(
        0.0, "How much lower (higher with mode max) counts as better.", at_least=0
    )


@dataclass(frozen=True, kw_only=True)
class WandbLogger(Section):
    """Weights & Biases."""

    project: str | None = setting(
        None,
        "Log to this project of Weights & Biases too.",
        flag="--wandb",
        metavar="PROJECT",
        shown="off",
        implies={"exp_manager.create_wandb_logger": True},
        panel="Output",
    )
    name: str | None = setting(None, "Name of the run there; the run directory's.")
    entity: str | None = setting(None, "Team or user the project belongs to.")


@dataclass(frozen=True, kw_only=True)
class ExpManager(Section):
    """Where results go."""

    explicit_log_dir: Path | None = setting(
        None,
        "Run directory.",
        flag="--out",
        short="-o",
        metavar="RUN_DIR",
        path_kind="directory",
        shown="runs/<algorithm>-<n>",
        panel="Output",
    )
    overwrite: bool = setting(
        False,
        "Replace what an earlier run left in the run directory.",
        flag="--overwrite",
        transient=True,
        panel="Output",
    )
    resume_if_exists: bool = setting(
        True,
        "Continue an unfinished run of the run directory.",
        flag="--resume/--no-resume",
        panel="Output",
    )
    checkpoint_callback_params: CheckpointCallback = section(CheckpointCallback)
    early_stopping: EarlyStopping = section(EarlyStopping)
    create_tensorboard_logger: bool = setting(
        False,
        "Log to tensorboard/ in the run directory too.",
        flag="--tensorboard",
        panel="Output",
    )
    create_wandb_logger: bool = setting(False, "Log to Weights & Biases; --wandb sets it.")
    wandb_logger_kwargs: WandbLogger = section(WandbLogger)
