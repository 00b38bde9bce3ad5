"""Checkpoints of a run: an unpacked ``.nemo`` that also holds the optimizer and the run's position.

megatron-core's ``dist_checkpointing`` writes the tensors, every rank its own; the rest (config,
tokenizer, ``progress.json``) makes the directory a source for every other command. A checkpoint is
written beside its final name and renamed when whole, so a kill at any instant leaves the last one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import dist_checkpointing

from nemoalign.log import speaking_rank
from nemoalign.train.randomness import restore_streams, save_streams
from nemoalign.train.rotation import PROGRESS, Rotation, read_progress
from nemoalign.train.sharded import load_sharded, quietly, sharded_state
from nemoalign.train.sums import write_sums
from nemoalign.train.writers import write_in_threads

if TYPE_CHECKING:
    from nemoalign.archive.files import Region
    from nemoalign.train.learner import Learner
    from nemoalign.train.progress import Progress

WEIGHTS = "model_weights"


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside tensors: everything that makes it readable on its own."""

    model_config_yaml: str
    files: Mapping[str, Region]
    adapters_only: bool


class Checkpointer:
    """Saves and restores one run's checkpoints."""

    def __init__(self, rotation: Rotation, learner: Learner, contents: Contents) -> None:
        self.rotation = rotation
        self.learner = learner
        self.contents = contents
        self.saved_step = -1
        write_in_threads()

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint for ``progress`` and return its directory. Collective."""
        temporary, final = self.rotation.paths(progress)
        if speaking_rank():
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / WEIGHTS).mkdir(parents=True)
        torch.distributed.barrier()
        state = sharded_state(self.learner, adapters_only=self.contents.adapters_only)
        with quietly():
            dist_checkpointing.save(state, str(temporary / WEIGHTS))
        save_streams(temporary)
        torch.distributed.barrier()
        if speaking_rank():
            self._describe(temporary, progress)
            write_sums(temporary)
            self.rotation.publish(temporary, final)
        torch.distributed.barrier()
        self.saved_step = progress.step
        return final

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Load weights and optimizer from ``checkpoint``; return its progress. Collective."""
        progress = read_progress(checkpoint)
        adapters_only = self.contents.adapters_only
        load_sharded(self.learner, checkpoint / WEIGHTS, adapters_only=adapters_only)
        restore_streams(checkpoint)
        self.saved_step = progress["step"]
        return progress

    def _describe(self, directory: Path, progress: Progress) -> None:
        (directory / "model_config.yaml").write_text(
            self.contents.model_config_yaml, encoding="utf-8"
        )
        (directory / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for name, region in self.contents.files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(region.read(region.size))
