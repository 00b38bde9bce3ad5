"""Where a checkpoint is written: named members, into a tar or into a plain directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nemoalign.errors import ConflictError, ResourceError

WRITEBACK_BYTES = 64 << 20
"""Bytes after which the disk is set to work, so that it writes while more is being made."""

Bytes = bytes | bytearray | memoryview


class MemberWriter(Protocol):
    """The inside of one member while it is written."""

    def write(self, data: Bytes, /) -> int:
        """Append bytes and return how many; nothing is buffered."""
        ...

    def tell(self) -> int:
        """Return the bytes written so far."""
        ...


class Sink(Protocol):
    """A place that takes members one after the other."""

    def add_directory(self, name: str) -> None:
        """Add a folder."""
        ...

    def add_bytes(self, name: str, data: Bytes) -> None:
        """Add one small file."""
        ...

    def member(self, name: str) -> AbstractContextManager[MemberWriter]:
        """Open one file for streaming; it is complete when the context ends."""
        ...


class FileWriter:
    """Unbuffered appends to one new file, flushed to the disk in the background."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise ResourceError(
                f"{path} cannot be created: {error.strerror}. Choose another place with -o."
            ) from error
        self._written = 0
        self._unflushed = 0
        self._flusher = ThreadPoolExecutor(1)
        self._flush: Future[None] | None = None

    def write(self, data: Bytes, /) -> int:
        """Append all of ``data``; raises ResourceError when the disk is full."""
        count = self.put(data, self._written)
        self._written += count
        return count

    def put(self, data: Bytes, position: int) -> int:
        """Write all of ``data`` at ``position``, in front of or behind what is there."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._descriptor, view[done:], position + done)
            except OSError as error:
                raise ResourceError(
                    f"Writing {self.path} failed at byte {position + done}: {error.strerror}. "
                    "Free some space, or choose another place with -o."
                ) from error
        self._start_flush(done)
        return done

    def skip(self, count: int) -> int:
        """Leave ``count`` bytes, zero until ``put`` writes them, and return where they begin."""
        start = self._written
        self._written += count
        return start

    def _start_flush(self, count: int) -> None:
        self._unflushed += count
        if self._unflushed >= WRITEBACK_BYTES and (self._flush is None or self._flush.done()):
            self._unflushed = 0
            self._flush = self._flusher.submit(os.fdatasync, self._descriptor)

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self._written

    def sync(self) -> None:
        """Return when every byte is on the disk."""
        if self._flush is not None:
            self._flush.result()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the descriptor back."""
        self._flusher.shutdown()
        os.close(self._descriptor)


class DirectoryWriter:
    """A Sink whose members are files of a folder that appears complete or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = temporary_name(path)

    def __enter__(self) -> Self:
        self._temporary.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _publish(self) -> None:
        sync_directory(self._temporary)
        try:
            self._temporary.rename(self.path)
        except OSError as error:
            raise ConflictError(
                f"{self.path} cannot be created: {error.strerror}. Remove it or choose another "
                "place with -o."
            ) from error
        sync_directory(self.path.parent)

    def add_directory(self, name: str) -> None:
        """Create a sub-folder."""
        (self._temporary / name).mkdir(parents=True, exist_ok=True)

    def add_bytes(self, name: str, data: Bytes) -> None:
        """Add one small file."""
        with self.member(name) as member:
            member.write(data)

    @contextmanager
    def member(self, name: str) -> Generator[FileWriter]:
        """Open one file; several may be open at a time."""
        file = self._temporary / name
        file.parent.mkdir(parents=True, exist_ok=True)
        writer = FileWriter(file)
        try:
            yield writer
            writer.sync()
        finally:
            writer.close()


def temporary_name(path: Path) -> Path:
    """Return the name beside ``path`` under which it is written until it is complete."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def sync_directory(path: Path) -> None:
    """Make the names in ``path`` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
