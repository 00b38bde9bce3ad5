"""Checkpoints of a run: an unpacked ``.nemo`` that also holds the optimizer and the run's position.

Every rank writes its own tensors: at once, or (on GPUs, and where ``async_save`` asks for it) in a child
process while training goes on. The rest (config, tokenizer, ``progress.json``, random streams) is always
written at once, and makes the directory a source for every other command. It is written beside its final name and renamed when every rank is done, so a
kill at any instant leaves the last one, and so does a full disk.

A run that trains more than one model keeps the others in directories of their own inside
(``critic/model_config.yaml``, ``critic/model_weights``), each an unpacked ``.nemo`` as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.errors import ResourceError
from nemoalign.log import speaking_rank
from nemoalign.train.agreement import Attempt, DiskError
from nemoalign.train.randomness import restore_streams, save_streams
from nemoalign.train.rotation import PROGRESS, Rotation, read_progress
from nemoalign.train.sharded import load_sharded, quietly, sharded_state
from nemoalign.train.sums import write_sums
from nemoalign.train.writer import Writer

if TYPE_CHECKING:
    from nemoalign.archive.files import Region
    from nemoalign.train.archiving import Archiver
    from nemoalign.train.learner import Learner
    from nemoalign.train.progress import Progress

WEIGHTS = "model_weights"


class SaveError(ResourceError):
    """A checkpoint could not be written; the ones before it are what they were."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside tensors: everything that makes it readable on its own."""

    model_config_yaml: str
    files: Mapping[str, Region]
    adapters_only: bool

    def write(self, directory: Path) -> None:
        """Write all of it below ``directory``, with an empty place for the tensors."""
        (directory / WEIGHTS).mkdir(parents=True)
        config = directory / "model_config.yaml"
        config.write_text(self.model_config_yaml, encoding="utf-8")
        for name, region in self.files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(region.read(region.size))


@dataclass(frozen=True)
class _Save:
    """A checkpoint in the making."""

    step: int
    temporary: Path
    final: Path
    archive: bool
    attempt: Attempt = field(default_factory=Attempt)
    writers: dict[str, Writer] = field(default_factory=dict)
    """Of each model, by its directory."""

    def finish(self) -> dict[str, list[int]]:
        """Wait for every writer and return the sums of all files by name, on rank 0. Collective."""
        return {
            (Path(home) / name).as_posix(): one
            for home, writer in self.writers.items()
            for name, one in writer.finish().items()
        }

    def abort(self) -> None:
        for writer in self.writers.values():
            writer.abort()


class Checkpointer:
    """Saves and restores one run's checkpoints; at most one save is under way.

    ``others`` are models trained beside ``learner``, by the directory each has in a checkpoint.
    ``in_background`` lets ``save`` return while tensors are still being written. ``archiver`` is there
    on rank 0 alone, and makes archives of ``learner``'s model.
    """

    def __init__(
        self,
        rotation: Rotation,
        learner: Learner,
        contents: Contents,
        *,
        others: Mapping[str, tuple[Learner, Contents]] | None = None,
        in_background: bool = False,
        archiver: Archiver | None = None,
    ) -> None:
        self.rotation = rotation
        self.models = {"": (learner, contents), **(others or {})}
        self.in_background = in_background
        self.archiver = archiver
        self.saved_step = -1
        self._under_way: _Save | None = None

    def save(self, progress: Progress, *, archive: bool = False) -> None:
        """Save everything as it is now; ``archive`` also makes a ``.nemo`` of it. Collective.

        Raises:
            SaveError: on every rank, when one of them could not write this checkpoint or the last.
        """
        self.finish()
        save = _Save(progress.step, *self.rotation.paths(progress), archive)
        with self._cleaning_up(save):
            self._begin(save, progress)
        self._under_way = save
        self.saved_step = progress.step
        if not self.in_background:
            self.finish()

    def is_writing(self) -> bool:
        """True while this rank's part of a save is being written. Asks no other rank."""
        save = self._under_way
        return save is not None and any(one.is_working() for one in save.writers.values())

    def finish(self) -> None:
        """Wait for the save under way, if there is one, and make it visible. Collective.

        Raises:
            SaveError: on every rank, when one of them could not write.
        """
        save, self._under_way = self._under_way, None
        if save is not None:
            with self._cleaning_up(save):
                sums = save.finish()
                if speaking_rank():
                    save.attempt.run(partial(self._publish, save, sums))
                save.attempt.agree()
        elif self.archiver is not None:
            self.archiver.look()

    def settle(self) -> None:
        """Finish everything that was begun, the archive too. Collective.

        Raises:
            SaveError: on every rank, when one of them could not write.
        """
        self.finish()
        if self.archiver is not None:
            self.archiver.wait()

    def close(self) -> None:
        """End what is still being written; a run that failed waits for nothing."""
        if self._under_way is not None:
            self._under_way.abort()
        if self.archiver is not None:
            self.archiver.abort()

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Load weights and optimizers from ``checkpoint``; return its progress. Collective."""
        progress = read_progress(checkpoint)
        for home, (learner, contents) in self.models.items():
            folder = checkpoint / home / WEIGHTS
            load_sharded(learner, folder, adapters_only=contents.adapters_only)
        restore_streams(checkpoint)
        self.saved_step = progress["step"]
        return progress

    def _begin(self, save: _Save, progress: Progress) -> None:
        attempt = save.attempt
        if speaking_rank():
            attempt.run(partial(self._describe, save.temporary, progress))
        attempt.agree()
        attempt.run(partial(save_streams, save.temporary))
        for home, (learner, contents) in self.models.items():
            state = sharded_state(learner, adapters_only=contents.adapters_only)
            folder = save.temporary / home / WEIGHTS
            with quietly():
                writer = Writer(state, folder, attempt, in_background=self.in_background)
            save.writers[home] = writer

    def _describe(self, directory: Path, progress: Progress) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        for home, (_, contents) in self.models.items():
            contents.write(directory / home)
        (directory / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")

    def _publish(self, save: _Save, sums: Mapping[str, list[int]]) -> None:
        write_sums(save.temporary, sums)
        if self.archiver is not None:
            self.archiver.wait()  # it may still read a checkpoint that rotation renames or removes
        self.rotation.publish(save.temporary, save.final)
        if save.archive and self.archiver is not None:
            self.archiver.start(save.final, save.step)

    @contextmanager
    def _cleaning_up(self, save: _Save) -> Iterator[None]:
        """Remove a checkpoint that came to nothing; every rank is inside and leaves it the same way."""
        try:
            yield
        except Exception as error:
            self.saved_step = -1
            save.abort()
            if speaking_rank():
                shutil.rmtree(save.temporary, ignore_errors=True)
            if isinstance(error, DiskError):
                raise SaveError(
                    f"The checkpoint of step {save.step} could not be written below "
                    f"{self.rotation.directory}: {error}. Those before it are intact."
                ) from error
            raise
