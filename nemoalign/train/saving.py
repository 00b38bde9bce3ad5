"""When a checkpoint that could not be written ends a run, and when it is a warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nemoalign.train.checkpointing import SaveError

if TYPE_CHECKING:
    from nemoalign.train.checkpointing import Checkpointer
    from nemoalign.train.progress import Progress


class Saving:
    """The saves of one run: on the way a failure is told to ``warn``; the last one must succeed."""

    def __init__(self, checkpointer: Checkpointer, warn: Callable[[str], None]) -> None:
        self.checkpointer = checkpointer
        self.warn = warn

    def save(self, progress: Progress, *, must: bool, archive: bool = False) -> None:
        """Save ``progress``; wait for it where it ``must`` succeed, since nothing comes after. Collective.

        Raises:
            SaveError: on every rank, when it must succeed and one of them could not write.
        """
        self.finish()
        try:
            self.checkpointer.save(progress, archive=archive)
        except SaveError as error:
            self._tell(error, must=must)
        if must:
            self.settle()

    def finish(self) -> None:
        """Make the save under way visible, when there is one; waits for it. Collective."""
        try:
            self.checkpointer.finish()
        except SaveError as error:
            self._tell(error, must=False)

    def settle(self) -> None:
        """Finish everything that was begun, since nothing comes after. Collective.

        Raises:
            SaveError: on every rank, when one of them could not write.
        """
        try:
            self.checkpointer.settle()
        except SaveError as error:
            self._tell(error, must=True)

    def _tell(self, error: SaveError, *, must: bool) -> None:
        if must:
            raise SaveError(
                f"{error} Make room, then type the same command: it goes on from the newest."
            ) from error
        self.warn(f"{error} The run goes on.")
