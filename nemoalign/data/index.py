"""Arrays that are made from a file of rows once, and mapped from disk by every later start and rank.

An index is a directory: one flat file an array, and ``header.json``, written last, with what it was made
of and a checksum of each array. What does not fit its header is made again, never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from nemoalign import __version__
from nemoalign.data.lines import Piece
from nemoalign.errors import ResourceError

HEADER = "header.json"
KEPT_PER_FILE = 8
"""Indexes of one file of rows, made with different settings, that are kept."""

_KINDS = ("|u1", "|b1", "<i4", "<i8", "<u8", "<f8")
_READ_BYTES = 1 << 22

Arrays = dict[str, np.ndarray]
Make = Callable[[], Iterable[Piece]]


def cache_directory() -> Path | None:
    """Return where indexes are kept when nobody says, or None where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "nemoalign" / "index"
    except RuntimeError:
        return None


def identity(path: Path) -> dict[str, Any]:
    """Return what tells a file from every other and from itself before a change."""
    found = path.stat()
    # The last of these also changes when somebody puts the time of the last change back.
    return {
        "path": str(path.resolve()),
        "size": found.st_size,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
    }


class IndexDirectory:
    """A directory of indexes; without one, or where it cannot be written, they last as long as we do."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.problem: str | None = None
        """Why nothing could be kept, once that has happened."""

    def arrays(self, source: Path, key: Mapping[str, Any], make: Make) -> Arrays:
        """Return the arrays that ``make`` yields in pieces, from disk when they are there.

        Args:
            source: the file of rows they are made from; a change of it is noticed.
            key: what else decides them.
            make: makes them; called again when keeping them fails half-way.

        Raises:
            ResourceError: when there is no room for them anywhere.
        """
        full = json.loads(json.dumps({**key, "file": identity(source), "code": _code()}))
        if self.path is not None:
            try:
                return _kept(self.path, full, make)
            except OSError as error:
                self.problem = f"{self.path}: {error.strerror or error}"
        try:
            with tempfile.TemporaryDirectory(prefix="nemoalign-index-") as directory:
                _write(Path(directory), full, make())
                return _checked(_read(Path(directory), full), directory)
        except OSError as error:
            raise ResourceError(
                f"There is no room to index {source} ({error.strerror or error}) in "
                f"{tempfile.gettempdir()}. Name a directory that has some: "
                "-s model.data.train_ds.index_mapping_dir=DIR"
            ) from error


def _kept(directory: Path, key: Mapping[str, Any], make: Make) -> Arrays:
    family = _digest(key["file"]["path"])[:12]
    target = directory / f"{family}-{_digest(key)[:20]}"
    found = _read(target, key)
    if found is not None:
        with suppress(OSError):
            os.utime(target)
        return found
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_suffix(".lock")):
        found = _read(target, key)  # another rank may have been faster
        if found is not None:
            return found
        made = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=directory))
        try:
            _write(made, key, make())
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _forget_oldest(directory, family)
        return _checked(_read(target, key), target)


def _write(directory: Path, key: Mapping[str, Any], pieces: Iterable[Piece]) -> None:
    files: dict[str, IO[bytes]] = {}
    described: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        for name, piece in pieces:
            if name not in files:
                files[name] = stack.enter_context((directory / name).open("wb"))
                described[name] = {"kind": piece.dtype.str, "bytes": 0, "crc32": 0}
            about, content = described[name], piece.tobytes()
            files[name].write(content)
            about["bytes"] += len(content)
            about["crc32"] = zlib.crc32(content, about["crc32"])
    (directory / HEADER).write_text(json.dumps({"key": key, "arrays": described}))


def _read(directory: Path, key: Mapping[str, Any]) -> Arrays | None:
    """Return the arrays of an index, or None when it is not there, not this one or not whole."""
    try:
        header = json.loads((directory / HEADER).read_text())
        if header["key"] != key:
            return None
        return {name: _mapped(directory, name, about) for name, about in header["arrays"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _mapped(directory: Path, name: str, about: Mapping[str, Any]) -> np.ndarray:
    """Return one array, mapped; ValueError when it is not what the header says."""
    if not name.isidentifier() or about["kind"] not in _KINDS:
        raise ValueError(name)
    crc = size = 0
    with (directory / name).open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    if (size, crc) != (about["bytes"], about["crc32"]):
        raise ValueError(name)
    if not size:
        return np.empty(0, about["kind"])
    return np.memmap(directory / name, about["kind"], mode="r")


def _checked(found: Arrays | None, where: object) -> Arrays:
    if found is None:
        raise OSError(f"what was written to {where} does not come back")
    return found


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock of this machine's processes; where a file system has none, whoever is last wins."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _forget_oldest(directory: Path, family: str) -> None:
    """Remove what has not been used for longest of the indexes of one file of rows."""
    with suppress(OSError):
        found = [path.parent for path in directory.glob(f"{family}-*/{HEADER}")]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[KEPT_PER_FILE:]:
            shutil.rmtree(path, ignore_errors=True)
            path.with_suffix(".lock").unlink(missing_ok=True)


@cache
def _code() -> str:
    """Return what stands for the code that makes rows into arrays; another version, another index."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return _digest([__version__, *(path.read_text(encoding="utf-8") for path in sources)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
