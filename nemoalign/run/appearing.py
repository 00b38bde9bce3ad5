"""A file that commands write lines to, and that appears when it is whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nemoalign.errors import ConflictError
from nemoalign.log import speaking_rank
from nemoalign.train.agreement import Attempt

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged


def target_of(merged: Merged) -> Path:
    """Return the file that ``-o`` names.

    Raises:
        ConflictError: when it exists and may not be replaced.
    """
    manager = merged.config.exp_manager
    target = manager.explicit_log_dir
    assert target is not None, "the caller asks where -o was given"
    if target.is_dir() or (target.exists() and not manager.overwrite):
        raise ConflictError(
            f"{target} exists. Give another file with -o, or replace it with --overwrite."
        )
    return target


@contextmanager
def appearing(target: Path) -> Iterator[Callable[[list[str]], None]]:
    """Yield what writes lines to a file that appears when it is whole, on rank 0. Collective.

    Raises:
        ResourceError: on every rank, when the disk had no room for it.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    attempt = Attempt()
    file = attempt.run(lambda: unfinished.open("w", encoding="utf-8")) if speaking_rank() else None

    def publish(file: IO[str]) -> None:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        unfinished.replace(target)

    try:
        yield lambda lines: None if file is None else attempt.run(partial(file.writelines, lines))
        if file is not None:
            attempt.run(partial(publish, file))
        attempt.agree()
    finally:
        if file is not None:
            with suppress(OSError):
                file.close()
            unfinished.unlink(missing_ok=True)
