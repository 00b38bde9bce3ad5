"""Open a checkpoint as named byte ranges: a plain tar archive or a directory, headers only.

Names decide what code reads, so a name that could mean two things, or a file outside, is refused.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemoalign.archive.regions import Region
from nemoalign.errors import SourceError

__all__ = ["Container", "Region", "open_container"]

CONFIG_NAME = "model_config.yaml"
MAX_MEMBERS = 1_000_000
MAX_HEADER_BYTES = 1 << 20
"""Longest extended header (a very long name) that is read from an archive."""


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
    absolute names, ``..`` and names that occur twice.
    """
    if path.is_dir():
        return Container(path, "directory", _directory_members(path))
    if not path.exists():
        raise SourceError(f"{path} does not exist. Check the path after --ckpt or SRC.")
    return Container(path, "tar", _strip_prefix(path, _tar_members(path)))


class _HeaderReader(io.RawIOBase):
    """The archive as tarfile sees it: an extended header cannot make it read the whole file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")

    def read(self, size: int = -1, /) -> bytes:
        """Read a header; refuse what is too long to be one."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise _refusal(self._path, f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to where the next header should be."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the archive."""
        self._file.close()
        super().close()


def _tar_members(path: Path) -> dict[str, Region]:
    size = path.stat().st_size
    members: dict[str, Region] = {}
    last = "its first header"
    try:
        with _HeaderReader(path) as reader, tarfile.open(fileobj=reader, mode="r:") as tar:
            for count, info in enumerate(tar):
                last = info.name
                _check_kind(path, info)
                if info.offset_data + info.size > size or count >= MAX_MEMBERS:
                    raise _truncated(path, last)
                if info.isreg():
                    region = Region(path, info.offset_data, info.size)
                    _add(path, members, info.name, region)
            _check_end(path, tar.offset, last)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if last == "its first header":
            _refuse_gzip(path)
            raise SourceError(
                f"{path} is not a tar archive ({error}), so it is no .nemo file. Give a .nemo "
                "file, an unpacked one, or a Hugging Face model directory."
            ) from error
        raise _truncated(path, last) from error
    if not members:
        raise SourceError(f"{path} is an archive without any file. Fetch or copy it again.")
    return members


def _refuse_gzip(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise SourceError(
                f"{path} is gzip-compressed, as NeMo before 1.7 wrote it, so nothing in it can be "
                f"read in place. Unpack it first: gzip -dc {path} > {path.stem}-plain.nemo"
            )


def _check_kind(path: Path, info: tarfile.TarInfo) -> None:
    if info.issparse() or not (info.isreg() or info.isdir()):
        kind = "link" if info.issym() or info.islnk() else "special file"
        raise _refusal(path, f"the {kind} {info.name[:200]!r}")
    _normalised(path, info.name)


def _check_end(path: Path, offset: int, last: str) -> None:
    """A tar ends with zero blocks; tarfile takes a damaged header or a cut for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise _truncated(path, last)


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
            _add(path, members, name, Region(target, 0, target.stat().st_size))
        else:
            raise _refusal(path, f"the special file or broken link {name!r}")
    return members


def _files_of(path: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(path, onerror=_raise):
        for link in (n for n in subfolders if (Path(folder) / n).is_symlink()):
            _inside(path, Path(folder) / link)
        subfolders[:] = sorted(n for n in subfolders if n != ".git")
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
        raise _refusal(root, f"the link {file.relative_to(root).as_posix()!r} to outside of it")
    return target


def _add(path: Path, members: dict[str, Region], raw_name: str, region: Region) -> None:
    name = _normalised(path, raw_name)
    if name in members:
        raise _refusal(path, f"the name {name[:200]!r} twice")
    members[name] = region


def _normalised(path: Path, name: str) -> str:
    hostile = name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/")
    if hostile:
        raise _refusal(path, f"the member name {name[:200]!r}")
    return posixpath.normpath(name)


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


def _refusal(path: Path, what: str) -> SourceError:
    return SourceError(
        f"{path} contains {what}, which no checkpoint needs and which could reach outside of it. "
        "Get the checkpoint from a source you trust."
    )


def _truncated(path: Path, name: str) -> SourceError:
    return SourceError(
        f"{path} ends inside or right after {name[:200]}: the archive is truncated or damaged "
        f"({path.stat().st_size} bytes). Fetch or copy it again."
    )
