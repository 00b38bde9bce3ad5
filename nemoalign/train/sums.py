"""Checksums of a checkpoint's files: written last, compared before anything of it is believed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUMS = "checksums.json"
_BLOCK_BYTES = 4 << 20


def write_sums(directory: Path, known: Mapping[str, list[int]] | None = None) -> None:
    """Write size and CRC-32 of every file below ``directory``; those in ``known`` are not read again."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    sums = dict(known or {})
    new = [path for path in files if path.relative_to(directory).as_posix() not in sums]
    with ThreadPoolExecutor(2) as workers:
        sums |= zip(_names(directory, new), workers.map(sum_file, new), strict=True)
    (directory / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def find_damage(directory: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None when all are as they were written.

    One without checksums (from before there were any) is taken as it is.
    """
    listing = directory / SUMS
    if not listing.exists():
        return None
    try:
        sums: dict[str, list[int]] = json.loads(listing.read_text(encoding="utf-8"))
    except ValueError:
        return f"{SUMS} is not JSON"
    missing = [name for name in sums if not (directory / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    with ThreadPoolExecutor(2) as workers:
        found = workers.map(sum_file, [directory / name for name in sums])
        for name, one in zip(sums, found, strict=True):
            if one != sums[name]:
                return f"{name} is not what was written"
    return None


def _names(directory: Path, files: list[Path]) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in files]


def sum_file(path: Path) -> list[int]:
    """Return size and CRC-32 of a file."""
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return [size, crc]
