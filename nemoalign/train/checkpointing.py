"""Checkpoints of a run: an unpacked ``.nemo`` that also holds the optimizer and the run's position.

Every rank writes its own tensors: at once, or (on GPUs, and where ``async_save`` asks for it) in a child
process while training goes on. The rest (config, tokenizer, ``progress.json``, random streams) is always
written at once, and makes the directory a source for every other command. It is written beside its final name and renamed when every rank is done, so a
kill at any instant leaves the last one, and so does a full disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class _Save:
    """A checkpoint in the making."""

    step: int
    temporary: Path
    final: Path
    attempt: Attempt
    writer: Writer
    archive: bool


class Checkpointer:
    """Saves and restores one run's checkpoints; at most one save is under way.

    ``in_background`` lets ``save`` return while tensors are still being written. ``archiver`` is there
    on rank 0 alone.
    """

    def __init__(
        self,
        rotation: Rotation,
        learner: Learner,
        contents: Contents,
        *,
        in_background: bool = False,
        archiver: Archiver | None = None,
    ) -> None:
        self.rotation = rotation
        self.learner = learner
        self.contents = contents
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
        with self._cleaning_up(progress.step, self.rotation.paths(progress)[0]):
            self._under_way = self._begin(progress, archive=archive)
        self.saved_step = progress.step
        if not self.in_background:
            self.finish()

    def is_writing(self) -> bool:
        """True while this rank's part of a save is being written. Asks no other rank."""
        return self._under_way is not None and self._under_way.writer.is_working()

    def finish(self) -> None:
        """Wait for the save under way, if there is one, and make it visible. Collective.

        Raises:
            SaveError: on every rank, when one of them could not write.
        """
        save, self._under_way = self._under_way, None
        if save is not None:
            with self._cleaning_up(save.step, save.temporary):
                sums = save.writer.finish()
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
            self._under_way.writer.abort()
        if self.archiver is not None:
            self.archiver.abort()

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Load weights and optimizer from ``checkpoint``; return its progress. Collective."""
        progress = read_progress(checkpoint)
        adapters_only = self.contents.adapters_only
        load_sharded(self.learner, checkpoint / WEIGHTS, adapters_only=adapters_only)
        restore_streams(checkpoint)
        self.saved_step = progress["step"]
        return progress

    def _begin(self, progress: Progress, *, archive: bool) -> _Save:
        temporary, final = self.rotation.paths(progress)
        attempt = Attempt()
        if speaking_rank():
            attempt.run(partial(self._describe, temporary, progress))
        attempt.agree()
        attempt.run(partial(save_streams, temporary))
        state = sharded_state(self.learner, adapters_only=self.contents.adapters_only)
        with quietly():
            writer = Writer(state, temporary / WEIGHTS, attempt, in_background=self.in_background)
        return _Save(progress.step, temporary, final, attempt, writer, archive)

    def _describe(self, directory: Path, progress: Progress) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        (directory / WEIGHTS).mkdir(parents=True)
        config = directory / "model_config.yaml"
        config.write_text(self.contents.model_config_yaml, encoding="utf-8")
        (directory / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for name, region in self.contents.files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(region.read(region.size))

    def _publish(self, save: _Save, sums: Mapping[str, list[int]]) -> None:
        write_sums(save.temporary, sums)
        if self.archiver is not None:
            self.archiver.wait()  # it may still read a checkpoint that rotation renames or removes
        self.rotation.publish(save.temporary, save.final)
        if save.archive and self.archiver is not None:
            self.archiver.start(save.final, save.step)

    @contextmanager
    def _cleaning_up(self, step: int, temporary: Path) -> Iterator[None]:
        """Remove a checkpoint that came to nothing; every rank is inside and leaves it the same way."""
        try:
            yield
        except Exception as error:
            self.saved_step = -1
            if speaking_rank():
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, DiskError):
                raise SaveError(
                    f"The checkpoint of step {step} could not be written below "
                    f"{self.rotation.directory}: {error}. Those before it are intact."
                ) from error
            raise
