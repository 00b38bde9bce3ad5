"""Which directory a run writes to when nobody names one: ``runs/<algorithm>-<n>``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from nemoalign.errors import ConfigError
from nemoalign.train.records import finished_summary

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.parallel.world import World

RUNS = Path("runs")


def choose_directory(
    merged: Merged, world: World | None, environ: Mapping[str, str], *, create: bool
) -> Path:
    """Return the newest unfinished run of the same settings, else a new directory.

    Ranks that were started elsewhere must agree without talking: under SLURM the job's number names
    the directory.

    Raises:
        ConfigError: for ranks of torchrun, which share nothing that could name one.
    """
    if "SLURM_JOB_ID" in environ and world is not None:
        return RUNS / f"{merged.algorithm}-job{environ['SLURM_JOB_ID']}"
    if world is not None and world.size > 1:
        raise ConfigError(
            f"{world.starter} started {world.size} ranks, which cannot agree on a new run directory. "
            f"Name it: -o {RUNS / merged.algorithm}-1"
        )
    manager = merged.config.exp_manager
    if manager.resume_if_exists and not manager.overwrite:
        for directory in _newest_first(merged.algorithm):
            if _continues(directory, merged):
                return directory
    for number in count(1):
        directory = RUNS / f"{merged.algorithm}-{number}"
        if _take(directory, create=create):
            return directory
    raise AssertionError("count() does not end")


def _newest_first(algorithm: str) -> Iterator[Path]:
    written = [path / "config.yaml" for path in RUNS.glob(f"{algorithm}-*")]
    found = [path for path in written if path.is_file()]
    yield from (path.parent for path in sorted(found, key=_changed, reverse=True))


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _continues(directory: Path, merged: Merged) -> bool:
    """True when ``directory`` holds this very run, unfinished."""
    if finished_summary(directory) is not None:
        return False
    wanted = merged.with_output(directory).to_yaml()
    return (directory / "config.yaml").read_text(encoding="utf-8") == wanted


def _take(directory: Path, *, create: bool) -> bool:
    """Return True when ``directory`` was free; with ``create`` it is made, so no one else takes it."""
    if not create:
        return not directory.exists()
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
