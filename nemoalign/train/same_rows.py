"""Whether the files of rows are still those a run began with: the order of samples means nothing else."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemoalign.errors import ConflictError

KNOWN = "data_files.json"
_BLOCK_BYTES = 4 << 20


def note_rows(directory: Path, files: Sequence[Path]) -> None:
    """Write size, time and CRC-32 of ``files`` into the directory of a run that begins."""
    known = directory / KNOWN
    temporary = known.with_suffix(".tmp")
    temporary.write_text(
        json.dumps({str(file): {**_cheap(file), "crc32": _crc(file)} for file in files}, indent=1),
        encoding="utf-8",
    )
    temporary.replace(known)


def check_same_rows(directory: Path, files: Sequence[Path], algorithm: str) -> None:
    """Refuse to continue with rows that are not those the run began with.

    Content is read only where the time of a file has changed and its size has not.

    Raises:
        ConflictError: naming the file, what differs, and the ways out.
    """
    known = directory / KNOWN
    if not known.exists():
        return
    before: dict[str, dict[str, Any]] = json.loads(known.read_text(encoding="utf-8"))
    for file in files:
        change = _change(file, before[str(file)]) if str(file) in before else None
        if change is not None:
            raise ConflictError(
                f"{file} {change}, so samples of {directory} would be repeated or left out. "
                f"With the old file back in its place: nemoalign {algorithm} --config "
                f"{directory / 'config.yaml'}. To start afresh with the new one: give another directory "
                "with -o, or replace this one with --overwrite."
            )


def _change(file: Path, before: dict[str, Any]) -> str | None:
    """Return how ``file`` differs from what it was, or None."""
    now = _cheap(file)
    if now["bytes"] != before["bytes"]:
        return f"has {now['bytes']:,} bytes and had {before['bytes']:,} when the run began"
    if now["modified"] != before["modified"] and _crc(file) != before["crc32"]:
        return "has other content than when the run began"
    return None


def _cheap(file: Path) -> dict[str, Any]:
    found = file.stat()
    return {"bytes": found.st_size, "modified": found.st_mtime_ns}


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc
