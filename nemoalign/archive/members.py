"""Names of the files in a checkpoint: they decide what code reads, so no name may mean two things."""

from __future__ import annotations

import posixpath
from pathlib import Path

from nemoalign.archive.regions import Region
from nemoalign.errors import SourceError

MAX_MEMBERS = 1_000_000


def add_member(path: Path, members: dict[str, Region], name: str, region: Region) -> None:
    """Add a file under its normalised name; raises SourceError when that is taken or leads out."""
    name = normalised(path, name)
    if name in members:
        raise refusal(path, f"the name {name[:200]!r} twice")
    members[name] = region


def normalised(path: Path, name: str) -> str:
    """Return a name without ``./`` and doubled slashes; raises SourceError when it leads out."""
    hostile = name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/")
    if hostile:
        raise refusal(path, f"the member name {name[:200]!r}")
    return posixpath.normpath(name)


def refusal(path: Path, what: str) -> SourceError:
    """Return the error for something that only a hostile archive contains."""
    return SourceError(
        f"{path} contains {what}, which no checkpoint needs and which could reach outside of it. "
        "Get the checkpoint from a source you trust."
    )
