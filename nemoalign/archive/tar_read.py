"""Find the members of a tar without reading them: plain, inside a gzip stream, or on a server."""

from __future__ import annotations

import io
import tarfile

from nemoalign.archive.members import MAX_MEMBERS, add_member, normalised, refusal
from nemoalign.archive.regions import Region
from nemoalign.errors import SourceError

MAX_HEADER_BYTES = 1 << 20
"""Longest extended header (a very long name) that is read from an archive."""


def tar_members(whole: Region) -> dict[str, Region]:
    """Return the files in the archive that fills ``whole``, by normalised name.

    Raises SourceError for what is no archive or a truncated one, and for members that no checkpoint
    needs: links, devices, absolute names, ``..`` and names that occur twice.
    """
    path = whole.path
    members: dict[str, Region] = {}
    last = "its first header"
    try:
        with _HeaderReader(whole) as reader, tarfile.open(fileobj=reader, mode="r:") as tar:
            for count, info in enumerate(tar):
                last = info.name
                _check_kind(whole, info)
                if info.offset_data + info.size > whole.size or count >= MAX_MEMBERS:
                    raise _truncated(whole, last)
                if info.isreg():
                    add_member(path, members, info.name, whole.part(info.offset_data, info.size))
            _check_end(whole, tar.offset, last)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if last == "its first header":
            raise SourceError(
                f"{path} is not a tar archive ({error}), so it is no .nemo file. Give a .nemo "
                "file, an unpacked one, or a Hugging Face model directory."
            ) from error
        raise _truncated(whole, last) from error
    if not members:
        raise SourceError(f"{path} is an archive without any file. Fetch or copy it again.")
    return members


class _HeaderReader(io.RawIOBase):
    """The archive as tarfile sees it: an extended header cannot make it read the whole file."""

    def __init__(self, whole: Region) -> None:
        self._whole = whole
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        """Read a header; refuse what is too long to be one."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise refusal(self._whole.path, f"a header of {size} bytes")
        start = min(self._position, self._whole.size)
        data = self._whole.bytes(start, min(size, self._whole.size - start))
        self._position = start + len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to where the next header should be, counted from the start."""
        assert whence == io.SEEK_SET, "tarfile counts from the start"
        self._position = offset
        return offset

    def tell(self) -> int:
        """Return the position."""
        return self._position


def _check_kind(whole: Region, info: tarfile.TarInfo) -> None:
    if info.issparse() or not (info.isreg() or info.isdir()):
        kind = "link" if info.issym() or info.islnk() else "special file"
        raise refusal(whole.path, f"the {kind} {info.name[:200]!r}")
    normalised(whole.path, info.name)


def _check_end(whole: Region, offset: int, last: str) -> None:
    """A tar ends with zero blocks; tarfile takes a damaged header or a cut for the end."""
    if offset + tarfile.BLOCKSIZE > whole.size or any(whole.bytes(offset, tarfile.BLOCKSIZE)):
        raise _truncated(whole, last)


def _truncated(whole: Region, name: str) -> SourceError:
    return SourceError(
        f"{whole.path} ends inside or right after {name[:200]}: the archive is truncated or damaged "
        f"({whole.size} bytes). Fetch or copy it again."
    )
