"""Whether a run directory may be continued with these settings, and what differs when it may not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.checkpoint_yaml import load_checkpoint_config
from nemoalign.errors import ConflictError

FREE = (
    "exp_manager.",
    "trainer.num_nodes",
    "trainer.devices",
    "trainer.max_time",
    "model.micro_batch_size",
    "model.data.train_ds.packed_sequence",
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.virtual_pipeline_model_parallel_size",
    "model.sequence_parallel",
    "model.activations_checkpoint_",
    "model.data.train_ds.index_mapping_dir",
    "model.optim.name",
    "model.optim.use_distributed_optimizer",
    "model.optim.overlap_grad_sync",
)
"""Keys that change how a run is computed, not what it computes: layout, limits of time, output."""

FREE_LIMITS = (
    "max_epochs",
    "max_steps",
    "val_check_interval",
    "save_interval",
)
"""Keys of the loop's own section, ``trainer.<algorithm>``, that only say how far and how often."""


def check_continues(directory: Path, config_yaml: str, algorithm: str) -> None:
    """Refuse to continue a run whose ``config.yaml`` is not ``config_yaml``, layout and limits aside.

    Raises:
        ConflictError: of another algorithm's run, or naming every differing key with both values and the two ways out.
    """
    written = directory / "config.yaml"
    if not written.exists():
        return
    before = _flat(load_checkpoint_config(written.read_text(encoding="utf-8"), str(written)))
    now = _flat(load_checkpoint_config(config_yaml, "this run's settings"))
    was = next(
        (name for name in ALGORITHMS if any(key.startswith(f"trainer.{name}.") for key in before)),
        algorithm,
    )
    if was != algorithm:
        raise ConflictError(
            f"{directory} holds a run of {was}, and this is {algorithm}. Give another directory with -o, or "
            "replace that run with --overwrite."
        )
    free = FREE + tuple(f"trainer.{algorithm}.{name}" for name in FREE_LIMITS)
    differing = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(free)
    ]
    if differing:
        raise ConflictError(
            f"{directory} was started with other settings: {'; '.join(differing)}. "
            f"To go on with its own: nemoalign {algorithm} --config {written}. "
            "To start afresh: give another directory with -o, or replace this one with --overwrite."
        )


def has_other_length(directory: Path, config_yaml: str, algorithm: str) -> bool:
    """True when a run asks for other ``--max-steps`` or ``--epochs`` than its ``config.yaml`` says."""
    written = directory / "config.yaml"
    if not written.exists():
        return False
    before = _flat(load_checkpoint_config(written.read_text(encoding="utf-8"), str(written)))
    now = _flat(load_checkpoint_config(config_yaml, "this run's settings"))
    keys = [f"trainer.{algorithm}.{name}" for name in ("max_epochs", "max_steps")]
    return any(before.get(key) != now.get(key) for key in keys)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys; null is the same as absent."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat
