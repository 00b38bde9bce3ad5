"""Rules between settings; every message names what to type. Single bounds are the fields' own."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemoalign.config.architecture import Architecture
from nemoalign.config.data import DataConfig
from nemoalign.config.schema import COSINE, ModelConfig, RunConfig, Schedule
from nemoalign.errors import ConfigError

LEARNED = "learned_absolute"


def check_complete(config: RunConfig, algorithm: str, typed: Sequence[str] = ()) -> None:
    """Refuse a run that lacks its checkpoint or its data, and say the line to type: ``typed`` and the rest.

    Raises:
        ConfigError: naming everything that is missing at once.
    """
    data = config.model.data
    measured = (
        data.validation_ds.file_path or data.test_ds.file_path or data.validation_ds.prompts_path
    )
    evaluates = config.trainer.loop.max_steps == 0 and measured
    missing: dict[str, str] = {}
    if config.pretrained_checkpoint.restore_from_path is None:
        missing["a checkpoint to start from (--ckpt)"] = "--ckpt model.nemo"
    own: Any = config.model.algorithm
    uses = not own.trains or getattr(own, "score_path", ())
    if not data.train_ds.file_path and not evaluates and not uses:
        missing["rows to learn from (--data)"] = "--data train.jsonl"
    if own.rows == "prompts" and not own.reward:
        missing["something that says what answers are worth (--reward)"] = "--reward rm.nemo"
    if not own.trains and not own.prompt and not own.prompts_path:
        missing["something to answer (--prompt or --data)"] = '--prompt "Hello"'
    if missing:
        raise ConfigError(
            f"{algorithm} needs {' and '.join(missing)}; no flag, file or environment variable names "
            f"{'it' if len(missing) == 1 else 'them'}. "
            f"Type: {' '.join(['nemoalign', algorithm, *map(shlex.quote, typed), *missing.values()])}"
        )


def check_rules(config: RunConfig, sources: Mapping[str, str]) -> Iterator[str]:
    """Yield warnings about settings without effect.

    Raises:
        ConfigError: when settings contradict each other.
    """
    optim, model = config.model.optim, config.model
    if optim.sched.min_lr > optim.lr and optim.sched.name != "constant":
        raise ConfigError(
            f"--min-lr {optim.sched.min_lr:g} is above --lr {optim.lr:g}"
            f"{_from(sources, 'model.optim.sched.min_lr', 'model.optim.lr')}. "
            f"Use --min-lr {optim.lr / 10:g} or less, or leave it out."
        )
    _check_schedule(optim.sched)
    _check_splits(model.data)
    if model.algorithm.rows == "prompts":
        _check_rollouts(model, sources)
    if model.peft.peft_scheme == "none":
        for flag, key in (("--lora-alpha", "alpha"), ("--lora-targets", "target_modules")):
            if sources.get(f"model.peft.lora_tuning.{key}", "").startswith("flag"):
                raise ConfigError(f"{flag} has no effect without --lora. Add --lora 16.")
        if model.peft.restore_from_path is not None:
            raise ConfigError(
                "--adapter goes on from trained adapters; add --lora with their rank."
            )
    _check_prompts(model)
    manager = config.exp_manager
    if manager.create_wandb_logger and manager.wandb_logger_kwargs.project is None:
        raise ConfigError(
            "exp_manager.create_wandb_logger is on, but nothing names the project. "
            "Type: --wandb PROJECT"
        )
    yield from _without_effect(model)


def _without_effect(model: ModelConfig) -> Iterator[str]:
    packed = model.data.train_ds.packed_sequence
    if packed and getattr(model.algorithm, "kl_estimate", None) == "micro_batch":
        yield (
            "model.kto.kl_estimate is micro_batch, and a pack holds as many rows as fit, not --mbs. "
            "Add --no-packing for NeMo-Aligner's micro-batches."
        )
    if model.algorithm.rows == "prompts":
        yield from _about_draws(model.algorithm)
    if model.sequence_parallel and model.tensor_model_parallel_size == 1:
        yield "--sequence-parallel has no effect with --tp 1."


def _about_draws(own: Any) -> Iterator[str]:
    """Yield a warning where answers are drawn from another distribution than the one that learns."""
    cuts = [
        f"{flag} {value:g}"
        for flag, value, plain in (
            ("--temperature", own.temperature, 1.0),
            ("--top-k", own.top_k, 0),
            ("--top-p", own.top_p, 1.0),
        )
        if value != plain
    ]
    if cuts:
        yield (
            f"{' '.join(cuts)} draws answers from another distribution than the one that learns, which is "
            "the model's own; ratios and KL do not know of it."
        )


def _check_rollouts(model: ModelConfig, sources: Mapping[str, str]) -> None:
    """Refuse sizes that leave an update short, or no room for prompts."""
    own: Any = model.algorithm
    rollouts, size = own.num_rollout_samples, model.global_batch_size
    if rollouts % size:
        raise ConfigError(
            f"--rollouts {rollouts} is no multiple of --gbs {size}, the answers of one update. "
            f"Use --rollouts {-(-rollouts // size) * size}, or --gbs {math.gcd(rollouts, size)}."
        )
    longest, new = model.encoder_seq_length, own.max_new_tokens
    if new is not None and longest - new < 8:
        raise ConfigError(
            f"--max-new-tokens {new}{_unless_typed(sources, 'model.ppo.max_new_tokens')} leaves "
            f"{max(0, longest - new)} of --seq-len {longest} for prompts. "
            f"Use {longest // 2} or fewer."
        )
    if own.min_new_tokens > (new or longest):
        raise ConfigError(
            f"--min-new-tokens {own.min_new_tokens} is above --max-new-tokens {new}. Lower it."
        )


def _check_splits(data: DataConfig) -> None:
    if data.shares is None:
        return
    trained = [file.path for file in data.train_ds.file_path]
    for flag, part in (("--val", data.validation_ds), ("--test", data.test_ds)):
        named = [file.path for file in part.file_path]
        if named and named != trained:
            raise ConfigError(
                f"model.data.splits_string splits the files of --data, and {flag} names {named[0]} too. "
                "Leave one of them out."
            )


def _check_prompts(model: ModelConfig) -> None:
    if model.algorithm.rows == "rewards" and model.data.validation_ds.prompts_path is not None:
        raise ConfigError("A reward model answers no prompts. Leave --val-prompts out.")


def _check_schedule(sched: Schedule) -> None:
    for what in ("warmup", "constant"):
        steps, ratio = getattr(sched, f"{what}_steps"), getattr(sched, f"{what}_ratio")
        if steps and ratio is not None:
            raise ConfigError(
                f"model.optim.sched.{what}_steps is {steps} and {what}_ratio is {ratio:g}; they say the "
                f"same thing. Leave one of them out."
            )
    if (sched.constant_steps or sched.constant_ratio) and sched.name != COSINE:
        raise ConfigError(
            f"model.optim.sched.constant_steps belongs to CosineAnnealing, and the schedule is "
            f"{sched.name}. Set it to 0 (-s model.optim.sched.constant_steps=0), or use --schedule cosine."
        )


def check_length(
    config: RunConfig, architecture: Architecture, checkpoint_length: int
) -> Iterator[str]:
    """Yield a warning when --seq-len exceeds what the checkpoint was made for.

    Raises:
        ConfigError: when its positions are learned, so that there are no more of them.
    """
    asked = config.model.encoder_seq_length
    if asked <= checkpoint_length:
        return
    if architecture.position_embedding_type == LEARNED:
        raise ConfigError(
            f"--seq-len {asked} is longer than the {checkpoint_length} positions this checkpoint "
            f"learned (position_embedding_type learned_absolute). Use --seq-len {checkpoint_length} "
            "or less."
        )
    if architecture.seq_len_interpolation_factor is None:
        yield (
            f"--seq-len {asked} is longer than the checkpoint's {checkpoint_length}; its rotary "
            "positions were never trained that far. "
            "--set model.seq_len_interpolation_factor=2 would compress them."
        )


def _unless_typed(sources: Mapping[str, str], key: str) -> str:
    return "" if sources.get(key, "").startswith("flag") else _from(sources, key)


def _from(sources: Mapping[str, str], *keys: str) -> str:
    known: dict[str, Any] = {sources[key]: None for key in keys if key in sources}
    return f" ({', '.join(known)})" if known else ""
