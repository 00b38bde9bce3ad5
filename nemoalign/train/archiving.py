"""The ``.nemo`` of one checkpoint, made by a child process while training goes on. Rank 0 has one."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import NemoAlignError
from nemoalign.log import PlainReporter
from nemoalign.train.child import Child

if TYPE_CHECKING:
    from nemoalign.log import Reporter


class Archiver:
    """Makes ``PREFIX-step=120.nemo`` of checkpoints, one at a time, and says when one is there."""

    def __init__(self, prefix: Path, reporter: Reporter) -> None:
        self.prefix = prefix
        self.reporter = reporter
        self._child: Child | None = None
        self._made = ("", 0.0)

    def start(self, checkpoint: Path, step: int) -> None:
        """Begin with the archive of ``checkpoint``, which must stay where it is until ``wait``."""
        self.wait()
        target = self.prefix.with_name(f"{self.prefix.name}-step={step}.nemo")
        self._made = f"saved as asked: {checkpoint} and {target}", time.perf_counter()
        self._child = Child(
            partial(_make, checkpoint, target),
            f"Type: nemoalign convert {checkpoint} -o {target}",
        )

    def look(self) -> None:
        """Say what came of an archive that is done; never waits."""
        if self._child is not None and not self._child.is_working():
            self.wait()

    def wait(self) -> None:
        """Wait for the archive under way, if there is one; one that failed is a warning."""
        child, self._child = self._child, None
        if child is None:
            return
        words, started = self._made
        try:
            child.answer()
        except (NemoAlignError, RuntimeError) as error:
            self.reporter.warn(f"The .nemo that was asked for could not be made: {error}")
        else:
            self.reporter.say(f"{words} ({time.perf_counter() - started:.1f} s beside training)")

    def abort(self) -> None:
        """End the archive under way; nothing of it appears under its name."""
        if self._child is not None:
            self._child.kill()


def _make(checkpoint: Path, target: Path) -> None:
    convert(checkpoint, target, WriteOptions(overwrite=True), reporter=PlainReporter(quiet=True))
