"""Open a checkpoint as named byte ranges: a tar archive or a directory, headers only.

Names decide what code reads, so a name that could mean two things, or a file outside, is refused.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemoalign.archive.gzip_read import MAGIC, GzipReader
from nemoalign.archive.members import MAX_MEMBERS, add_member, refusal
from nemoalign.archive.regions import Region
from nemoalign.archive.tar_read import tar_members
from nemoalign.errors import SourceError

__all__ = ["Container", "Region", "open_container", "open_tar"]

CONFIG_NAME = "model_config.yaml"


@dataclass(frozen=True)
class Container:
    """The files of one checkpoint by normalised name (``model_weights/.metadata``)."""

    path: Path
    kind: Literal["tar", "directory"]
    members: Mapping[str, Region]

    def under(self, prefix: str) -> Container:
        """Return the files inside a sub-folder, named relative to it (empty when there is none)."""
        start = prefix.rstrip("/") + "/"
        inside = {n[len(start) :]: r for n, r in self.members.items() if n.startswith(start)}
        return Container(self.path, self.kind, inside)

    def member(self, name: str) -> Region:
        """Return one file; raises SourceError that names the container when it is missing."""
        if name not in self.members:
            raise SourceError(
                f"{self.path} has no {name}. It is incomplete or another kind of checkpoint: "
                f"`nemoalign inspect {self.path}` says what it is."
            )
        return self.members[name]


def open_container(path: Path) -> Container:
    """Return the members of a ``.nemo`` tar or of a directory with the same content.

    In an archive, a single prefix before ``model_config.yaml`` is stripped. Raises SourceError for
    unreadable or truncated archives and for members that no checkpoint needs: links, devices,
    absolute names, ``..`` and names that occur twice. A folder inside a checkpoint's directory that has
    a ``model_config.yaml`` of its own is another checkpoint, and none of its files are members.
    """
    if path.is_dir():
        return Container(path, "directory", _directory_members(path))
    if not path.exists():
        raise SourceError(f"{path} does not exist. Check the path after --ckpt or SRC.")
    whole = Region(path, 0, path.stat().st_size)
    if whole.size >= len(MAGIC) and whole.bytes(0, len(MAGIC)) == MAGIC:
        unpacked = GzipReader(whole)
        whole = Region(path, 0, unpacked.size, unpacked)
    return open_tar(whole)


def open_tar(whole: Region) -> Container:
    """Return the members of the archive that fills ``whole``; raises as ``open_container`` does."""
    return Container(whole.path, "tar", _strip_prefix(whole.path, tar_members(whole)))


def _directory_members(path: Path) -> dict[str, Region]:
    members: dict[str, Region] = {}
    for file in _files_of(path):
        if len(members) >= MAX_MEMBERS:
            raise SourceError(
                f"{path} holds more than {MAX_MEMBERS} files, so it is no checkpoint. Give the "
                "folder of one model."
            )
        name = file.relative_to(path).as_posix()
        if file.is_file():
            target = _inside(path, file)
            add_member(path, members, name, Region(target, 0, target.stat().st_size))
        else:
            raise refusal(path, f"the special file or broken link {name!r}")
    return members


def _files_of(path: Path) -> Iterator[Path]:
    holds_checkpoint = (path / CONFIG_NAME).is_file()
    for folder, subfolders, names in os.walk(path, onerror=_raise):
        for link in (n for n in subfolders if (Path(folder) / n).is_symlink()):
            _inside(path, Path(folder) / link)
        subfolders[:] = sorted(
            n
            for n in subfolders
            if n != ".git" and not (holds_checkpoint and (Path(folder) / n / CONFIG_NAME).is_file())
        )
        yield from (Path(folder) / name for name in sorted(names))


def _raise(error: OSError) -> None:
    raise SourceError(
        f"{error.filename} cannot be read: {error.strerror}. Check its permissions."
    ) from error


def _inside(root: Path, file: Path) -> Path:
    """Return what ``file`` is after links; a hub cache keeps its blobs beside the snapshots."""
    target = file.resolve()
    home = root.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise refusal(root, f"the link {file.relative_to(root).as_posix()!r} to outside of it")
    return target


def _strip_prefix(path: Path, members: dict[str, Region]) -> dict[str, Region]:
    configs = sorted(
        (n for n in members if posixpath.basename(n) == CONFIG_NAME), key=lambda n: n.count("/")
    )
    if not configs or configs[0] == CONFIG_NAME:
        return members
    prefix = configs[0][: -len(CONFIG_NAME)]
    outside = [n for n in members if not n.startswith(prefix)]
    if outside:
        raise SourceError(
            f"{path} has {configs[0]} and, outside of its folder, {outside[0][:200]}: it is "
            "unclear where the checkpoint begins. Repack it, or give the folder itself."
        )
    return {n[len(prefix) :]: region for n, region in members.items()}
