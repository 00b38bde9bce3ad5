"""Write a ``.nemo``: a plain tar, streamed member by member, complete under its name or absent.

Members start with ``./`` as NeMo writes them, and carry no time, user or machine, so that the same
content gives the same bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from nemoalign.archive.sink import (
    Bytes,
    FileWriter,
    sync_directory,
    temporary_name,
)

MODIFIED = 315_532_800
"""1980-01-01, the earliest time a zip can state; torch.save uses it as well."""


class TarWriter:
    """A Sink that writes ``<path>.tmp-<pid>`` and renames it to ``path`` on a clean exit.

    An exception inside the context removes what was written. An existing ``path`` is replaced, so
    the caller asks first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = temporary_name(path)
        self._names: set[str] = set()
        self._member_is_open = False
        self._reserved: list[Reserved] = []

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.unlink(missing_ok=True)
        self._file = FileWriter(self._temporary)
        self.add_directory("")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        assert not self._member_is_open, "members are closed before the archive"
        assert all(member.is_full for member in self._reserved), "what is reserved is written"
        # Two zero blocks end a tar; GNU tar fills the last record of 20 blocks.
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))
        self._file.sync()
        self._temporary.replace(self.path)
        sync_directory(self.path.absolute().parent)

    def add_directory(self, name: str) -> None:
        """Add a folder; ``""`` is the archive's own ``./``, which is always there."""
        self._file.write(self._header(f"{name.rstrip('/')}/" if name else "", 0, tarfile.DIRTYPE))

    def add_bytes(self, name: str, data: Bytes) -> None:
        """Add one small file."""
        with self.member(name) as member:
            member.write(data)

    @contextmanager
    def member(self, name: str) -> Generator[_Member]:
        """Open one file; its size is written into the header when the context ends."""
        assert not self._member_is_open, "a tar takes one member at a time"
        header_at = self._file.tell()
        self._file.write(self._header(name, 0, tarfile.REGTYPE))
        self._member_is_open = True
        member = _Member(self._file)
        yield member
        self._member_is_open = False
        self._names.discard(name)
        header = self._header(name, member.tell(), tarfile.REGTYPE)
        self._file.write(bytes(-member.tell() % tarfile.BLOCKSIZE))
        self._file.put(header, header_at)

    def reserve(self, name: str, size: int) -> Reserved:
        """Add one file of known size that may be written while others are."""
        assert not self._member_is_open, "a tar takes one member at a time"
        self._file.write(self._header(name, size, tarfile.REGTYPE))
        padded = size + -size % tarfile.BLOCKSIZE
        self._reserved.append(Reserved(self._file, self._file.skip(padded), size))
        return self._reserved[-1]

    def _header(self, name: str, size: int, kind: bytes) -> bytes:
        assert name not in self._names, f"{name!r} is already in the archive"
        self._names.add(name)
        info = tarfile.TarInfo(f"./{name}")
        info.type = kind
        info.size = size
        info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        info.mtime = MODIFIED
        # GNU format states sizes above 8 GiB inside the same 512 bytes, so a header can be patched.
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


class Reserved:
    """The place of one member of known size, written from its start to its end."""

    def __init__(self, file: FileWriter, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._written = 0

    @property
    def is_full(self) -> bool:
        """True when every byte was written."""
        return self._written == self._size

    def write(self, data: Bytes, /) -> int:
        """Append bytes."""
        assert self._written + len(data) <= self._size, "a member stays inside its place"
        count = self._file.put(data, self._start + self._written)
        self._written += count
        return count


class _Member:
    """One member's bytes inside the archive file."""

    def __init__(self, file: FileWriter) -> None:
        self._file = file
        self._start = file.tell()

    def write(self, data: Bytes, /) -> int:
        """Append bytes."""
        return self._file.write(data)

    def tell(self) -> int:
        """Return the bytes of this member so far."""
        return self._file.tell() - self._start
